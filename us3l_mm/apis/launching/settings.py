# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the flags of the tools change in a config."""
import os.path as osp
from pathlib import Path
from typing import List, Optional

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import is_cuda_available
from mmengine.hooks import CheckpointHook, LoggerHook

from .config import is_detection
from .processes import has_accelerator
from .required_files import is_pretrained

# Hooks of MMEngine, and those that take their place.
REPLACED = {
    kind: f'us3l_mm.{ours}'
    for stock, ours in ((CheckpointHook, 'AtomicCheckpointHook'),
                        (LoggerHook, 'ProgressHook'))
    for kind in (stock, stock.__name__, f'mmengine.{stock.__name__}')}
KNN = 'us3l_mm.WidthKNNHook'
# Default hooks that MMEngine adds by itself and takes out where they are None.
OF_MMENGINE = ('runtime_info', 'timer', 'sampler_seed', 'logger',
               'param_scheduler', 'checkpoint')
# An optimizer wrapper, and the one that does the same in mixed precision.
AMP = {
    'OptimWrapper': 'AmpOptimWrapper',
    'us3l_mm.MultiPassOptimWrapper': 'us3l_mm.MultiPassAmpOptimWrapper', }
CPU_AMP = 'us3l_mm.CpuAmpOptimWrapper'


def set_up_training(cfg: Config, path: str, work_dir: Optional[str] = None,
                    resume: Optional[str] = None, amp: bool = False,
                    launcher: str = 'none', validate: bool = True,
                    auto_scale_lr: bool = False, pin_memory: bool = True,
                    persistent_workers: bool = True) -> None:
    """Change ``cfg``, in place, as the flags of ``tools/train.py`` say.

    Args:
        cfg (Config): The config.
        path (str): The file that it is from, which names the work dir.
        work_dir (str, optional): See :func:`set_work_dir`.
        resume (str, optional): See :func:`resume_from`.
        amp (bool): See :func:`set_precision`.
        launcher (str): What starts the processes. Defaults to 'none'.
        validate (bool): Whether to evaluate during training. Defaults to
            True.
        auto_scale_lr (bool): See :func:`scale_learning_rate`.
        pin_memory, persistent_workers (bool): See :func:`set_up_loader`.
    """
    cfg.launcher = launcher
    set_work_dir(cfg, work_dir, path)
    if not validate:
        leave_out_validation(cfg)
    if resume is not None:
        resume_from(cfg, resume)
    replace_hooks(cfg)
    set_precision(cfg, amp)
    if auto_scale_lr:
        scale_learning_rate(cfg)
    for stage in ('train', 'val', 'test'):
        set_up_loader(cfg, stage, pin_memory, persistent_workers)
    add_checks(cfg)
    drop_disabled_hooks(cfg)


def set_work_dir(cfg: Config, work_dir: Optional[str], config: str) -> None:
    """Set the folder of the flag, of the config, or one named after it."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', Path(config).stem)


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Resume from ``checkpoint``, a path, a URL or 'auto'.

    Raises:
        FileNotFoundError: If there is no such file.
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
        if hook.get('type') != KNN]
    hooks = _default_hooks(cfg)
    for name in [n for n, h in hooks.items() if h and h.get('type') == KNN]:
        hooks[name] = None


def scale_learning_rate(cfg: Config) -> None:
    """Scale the learning rate by the batch size of this run.

    Raises:
        ValueError: If the config does not say which batch size it is for.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            '--auto-scale-lr needs to know which batch size the learning rate '
            f'of {cfg.filename} is meant for. Add auto_scale_lr=dict('
            'base_batch_size=<GPUs x batch size per GPU>) to it.')
    cfg.auto_scale_lr.enable = True


def set_precision(cfg: Config, amp: bool) -> None:
    """Turn mixed precision on if ``amp``; on CPUs it is bfloat16.

    Raises:
        ValueError: If the config has an optimizer wrapper of another kind.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if amp and kind in AMP:
        wrapper.type = AMP[kind]
    elif amp and kind not in AMP.values():
        raise ValueError(
            '--amp makes an OptimWrapper an AmpOptimWrapper, and likewise '
            'us3l_mm.MultiPassOptimWrapper; the config has '
            f'optim_wrapper.type={kind!r}.')
    elif kind in AMP:  # arguments of a mixed precision that was switched off
        for name in ('dtype', 'loss_scale'):
            wrapper.pop(name, None)
    if wrapper.get('type') == 'AmpOptimWrapper' and not has_accelerator():
        wrapper.type = CPU_AMP  # MMEngine's is for accelerators alone
        wrapper.pop('loss_scale', None)


def describe_precision(cfg: Config) -> Optional[str]:
    """What a run by ``cfg`` computes in; None for single precision."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type') not in (*AMP.values(), CPU_AMP):
        return None
    if has_accelerator():
        return f'Mixed precision: {wrapper.get("dtype") or "float16"}.'
    slow = '' if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (
        ' This CPU has no instructions for it, so single precision is faster: '
        'leave out --amp.')
    return f'Mixed precision on the CPU: bfloat16.{slow}'


def set_up_loader(cfg: Config, stage: str, pin_memory: bool = True,
                  persistent_workers: bool = True) -> None:
    """Set the defaults of a data loader that make it fast.

    Args:
        cfg (Config): The config; changed in place.
        stage (str): 'train', 'val' or 'test'.
        pin_memory (bool): Whether memory may be pinned, as the config says or
            else if there is a GPU. Defaults to True.
        persistent_workers (bool): Whether workers may outlive an epoch, as the
            config says or else always. Defaults to True.
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


def replace_hooks(cfg: Config) -> None:
    """Let ``cfg`` write whole checkpoints, resume exactly, and log often.

    Stock hooks, including those that MMEngine adds by itself, become
    :class:`~us3l_mm.engine.AtomicCheckpointHook` and
    :class:`~us3l_mm.engine.ProgressHook`, which take the same arguments;
    :class:`~us3l_mm.engine.ExactResumeHook` is added. A config that switches
    one off (``checkpoint=None``) stays without. Changes ``cfg`` in place.
    """
    hooks = _default_hooks(cfg)
    # As MMEngine does
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    hooks.setdefault('logger', dict(type='LoggerHook'))
    for hook in _hooks(cfg):
        if hook.get('type') in REPLACED:
            hook['type'] = REPLACED[hook['type']]
    _add_hook(cfg, 'exact_resume', 'us3l_mm.ExactResumeHook')


def add_checks(cfg: Config) -> None:
    """Let a run check its pre-trained weights and its annotations."""
    if is_pretrained(cfg):
        _add_hook(cfg, 'check_pretrained', 'us3l_mm.CheckPretrainedHook')
    if is_detection(cfg):
        _add_hook(cfg, 'check_annotations', 'us3l_mm.CheckAnnotationsHook')


def _default_hooks(cfg: Config) -> ConfigDict:
    cfg.default_hooks = cfg.get('default_hooks') or ConfigDict()
    return cfg.default_hooks


def _hooks(cfg: Config) -> List[dict]:
    hooks = [*_default_hooks(cfg).values(), *(cfg.get('custom_hooks') or [])]
    return [hook for hook in hooks if isinstance(hook, dict)]


def _add_hook(cfg: Config, name: str, kind: str) -> None:
    """Add a default hook, unless there is one of this name or kind."""
    if all(hook.get('type') != kind for hook in _hooks(cfg)):
        _default_hooks(cfg).setdefault(name, ConfigDict(type=kind))


def drop_disabled_hooks(cfg: Config) -> None:
    """Take ``default_hooks.<name>=None`` out of ``cfg``, in place.

    MMEngine does so for its own hooks alone, and fails on others.
    """
    hooks = _default_hooks(cfg)
    for name in [name for name, hook in hooks.items() if hook is None]:
        if name not in OF_MMENGINE:
            del hooks[name]
