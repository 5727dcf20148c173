# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Any config, made to survive what stops a run."""
from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook

STOCK = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)
ATOMIC, EXACT = 'us3l_mm.AtomicCheckpointHook', 'us3l_mm.ExactResumeHook'


def make_resumable(cfg: Config) -> None:
    """Let ``cfg`` write whole checkpoints and resume exactly, in place.

    Stock checkpoint hooks, that which MMEngine would add by itself included,
    become :class:`~us3l_mm.engine.AtomicCheckpointHook`, which takes the same
    arguments; :class:`~us3l_mm.engine.ExactResumeHook` is added. A config
    without any checkpoint hook (``checkpoint=None``) stays without.
    """
    if not cfg.get('default_hooks'):
        cfg.default_hooks = ConfigDict()
    hooks = cfg.default_hooks
    # What MMEngine itself would add.
    hooks.setdefault('checkpoint', ConfigDict(type=STOCK[0], interval=1))
    custom = list(cfg.get('custom_hooks') or [])
    for hook in [*hooks.values(), *custom]:
        if isinstance(hook, dict) and hook.get('type') in STOCK:
            hook['type'] = ATOMIC
    if not any(
            isinstance(hook, dict) and hook.get('type') == EXACT
            for hook in [*hooks.values(), *custom]):
        hooks.exact_resume = ConfigDict(type=EXACT)
