# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The settings of a config that flags of the tools stand for."""
import os.path as osp
from pathlib import Path
from typing import Optional

from mmengine.config import Config, ConfigDict
from mmengine.device import is_cuda_available
from mmengine.hooks import CheckpointHook

from .config import is_detection
from .processes import has_accelerator
from .required_files import is_pretrained

STOCK = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)
ATOMIC, EXACT = 'us3l_mm.AtomicCheckpointHook', 'us3l_mm.ExactResumeHook'
KNN = 'us3l_mm.WidthKNNHook'
CHECK_PRETRAINED = 'us3l_mm.CheckPretrainedHook'
CHECK_ANNOTATIONS = 'us3l_mm.CheckAnnotationsHook'
# Default hooks that MMEngine adds by itself and takes out where they are None.
OF_MMENGINE = ('runtime_info', 'timer', 'sampler_seed', 'logger',
               'param_scheduler', 'checkpoint')
# An optimizer wrapper, and the one that does the same in mixed precision.
AMP = {
    'OptimWrapper': 'AmpOptimWrapper',
    'us3l_mm.MultiPassOptimWrapper': 'us3l_mm.MultiPassAmpOptimWrapper',
}
CPU_AMP = 'us3l_mm.CpuAmpOptimWrapper'


def set_work_dir(cfg: Config, work_dir: Optional[str], config: str) -> None:
    """Take the flag, the config's own folder, or one named after its file."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', Path(config).stem)


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Resume from ``checkpoint``, a path, a URL or 'auto'.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    cfg.resume, cfg.load_from = True, None
    if checkpoint != 'auto':
        if '://' not in checkpoint and not osp.isfile(checkpoint):
            raise FileNotFoundError(
                f'--resume {checkpoint}: there is no such file. Without a '
                'value, --resume takes the last checkpoint of the work dir, '
                f'{cfg.work_dir}.')
        cfg.load_from = checkpoint


def leave_out_validation(cfg: Config) -> None:
    """Train without validation, kNN included."""
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.custom_hooks = [
        hook for hook in cfg.get('custom_hooks') or []
        if hook.get('type') != KNN
    ]
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if hook is not None and hook.get('type') == KNN:
            cfg.default_hooks[name] = None


def scale_learning_rate(cfg: Config) -> None:
    """Scale the learning rate by the batch size of this run.

    Raises:
        ValueError: if the config does not say which batch size it is for.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            '--auto-scale-lr needs to know which batch size the learning rate '
            f'of {cfg.filename} is meant for. Add auto_scale_lr=dict('
            'base_batch_size=<GPUs x batch size per GPU>) to it.')
    cfg.auto_scale_lr.enable = True


def set_precision(cfg: Config, amp: bool) -> None:
    """Turn mixed precision on if ``amp``; check that it can run here.

    Raises:
        ValueError: if the config has another optimizer wrapper, or if float16
            is asked for without an accelerator.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if amp and kind in AMP:
        wrapper.type = kind = AMP[kind]
        wrapper.setdefault('loss_scale', 'dynamic')
    if amp and kind not in (*AMP.values(), CPU_AMP):
        raise ValueError(
            '--amp makes an OptimWrapper an AmpOptimWrapper, and likewise '
            'us3l_mm.MultiPassOptimWrapper; the config has '
            f'optim_wrapper.type={kind!r}.')
    if kind in AMP:  # other arguments of mixed precision are left over
        for name in ('dtype', 'loss_scale'):
            wrapper.pop(name, None)
    if kind not in AMP.values() or has_accelerator():
        return
    if wrapper.get('dtype') == 'bfloat16':
        if kind == 'AmpOptimWrapper':  # MMEngine's is for accelerators alone
            wrapper.type = CPU_AMP
        wrapper.pop('loss_scale', None)  # bfloat16 has the range of float32
        return
    [plain] = [name for name, mixed in AMP.items() if mixed == kind]
    way_out = ('Leave out --amp' if amp else 'Train in single precision: '
               f'--cfg-options optim_wrapper.type={plain}')
    raise ValueError(
        'Mixed precision in float16 needs a GPU, and PyTorch finds none here. '
        f'{way_out}, or train in bfloat16, which CPUs have: --cfg-options '
        'optim_wrapper.dtype=bfloat16')


def set_up_loader(cfg: Config, stage: str, pin_memory: bool = True,
                  persistent_workers: bool = True) -> None:
    """Set the defaults of a data loader that speed it up, where they can.

    Args:
        cfg (Config): The config; changed in place.
        stage (str): 'train', 'val' or 'test'.
        pin_memory (bool): False never pins memory. Defaults to True: as the
            config says, else where there is a GPU.
        persistent_workers (bool): False starts workers anew in each epoch.
            Defaults to True: as the config says, else keep them.
    """
    loader = cfg.get(f'{stage}_dataloader')
    if loader is None:
        return
    loader.setdefault('pin_memory', is_cuda_available())
    loader.setdefault('persistent_workers', True)
    if not is_detection(cfg):  # MMDetection's images differ in size
        loader.setdefault('collate_fn', dict(type='default_collate'))
    if loader.get('num_workers'):
        # Seconds; PyTorch's own default is to wait for ever.
        loader.setdefault('timeout', 600)
    if not pin_memory:
        loader.pin_memory = False
    # PyTorch refuses to keep workers that do not exist.
    if not persistent_workers or not loader.get('num_workers'):
        loader.persistent_workers = False


def make_resumable(cfg: Config) -> None:
    """Let ``cfg`` write whole checkpoints and resume exactly, in place.

    Stock checkpoint hooks, including the one that MMEngine adds by itself,
    become :class:`~us3l_mm.engine.AtomicCheckpointHook`, which takes the same
    arguments; :class:`~us3l_mm.engine.ExactResumeHook` is added. A config that
    switches one off (``checkpoint=None``) stays without.
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
        hooks.setdefault('exact_resume', ConfigDict(type=EXACT))


def drop_disabled_hooks(cfg: Config) -> None:
    """Take ``default_hooks.<name>=None`` out of ``cfg``, in place.

    MMEngine does so for its own hooks alone, and fails on others.
    """
    hooks = cfg.get('default_hooks') or {}
    for name in [name for name, hook in hooks.items() if hook is None]:
        if name not in OF_MMENGINE:
            del hooks[name]


def add_checks(cfg: Config) -> None:
    """Let a run check its weights and annotations; see the two hooks."""
    if not cfg.get('default_hooks'):
        cfg.default_hooks = ConfigDict()
    hooks = cfg.default_hooks
    given = {
        hook.get('type')
        for hook in [*hooks.values(), *(cfg.get('custom_hooks') or [])] if hook
    }
    for name, kind, wanted in (('check_pretrained', CHECK_PRETRAINED,
                                is_pretrained(cfg)), ('check_annotations',
                                                      CHECK_ANNOTATIONS,
                                                      is_detection(cfg))):
        if wanted and kind not in given:
            hooks.setdefault(name, ConfigDict(type=kind))
