# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import hashlib
import os
import os.path as osp
import socket
from collections import deque
from typing import Dict, List, Optional

from mmengine.dist import (all_gather_object, broadcast_object_list,
                           is_main_process, master_only)
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import CheckpointLoader, Runner

from us3l_mm.fileio import (WholeFileBackend, find_checkpoint,
                            remove_leftovers, to_bytes)
from us3l_mm.fileio.finding import POINTER, TEMPLATES
from us3l_mm.registry import HOOKS

BACKEND = dict(backend='us3l_mm.whole_files')


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, safe against whatever stops a run.

    A checkpoint is written beside its place and then renamed;
    ``last_checkpoint`` names it only after that, and what ``max_keep_ckpts``
    or a better result makes superfluous is removed only then. So there is
    always a whole checkpoint once there was one, and for a moment one more
    than ``max_keep_ckpts``. What killed writes leave behind is removed when
    training starts.

    ``resume=True`` without a ``load_from`` goes on from the newest checkpoint
    that can be read; rank 0 chooses it for all processes. Without any
    checkpoint, training starts from scratch and says so.

    A checkpoint folder that is no local one is left to its own backend: stores
    of objects write whole objects.

    Args:
        *args, **kwargs: Those of ``CheckpointHook``.
    """

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from, the same on all processes."""
        if not runner._resume or runner._load_from is not None:
            return
        # MMEngine would take what last_checkpoint names, readable or not.
        runner._load_from = self._choose(runner)
        if runner._load_from is None:
            runner._resume = False
            runner.logger.warning(
                f'There is no checkpoint in {runner.work_dir} to resume from: '
                'training starts from scratch.')

    def _choose(self, runner: Runner) -> Optional[str]:
        answer: List[Dict] = [dict(path=None, error=None)]
        if is_main_process():
            trust = os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD') == '0'
            folders = [self._folder(runner)] if self._is_local(runner) else []
            try:
                path = find_checkpoint(runner.work_dir, folders,
                                       [*TEMPLATES, self.filename_tmpl], trust,
                                       runner.logger.warning)
                answer[0].update(path=path, size=path and osp.getsize(path))
            except (ValueError, OSError) as error:
                answer[0].update(error=str(error))
        broadcast_object_list(answer)
        chosen = answer[0]
        if chosen['error'] is not None:
            raise ValueError(chosen['error'])
        path = chosen['path']
        if path is not None:
            sees = osp.isfile(path) and osp.getsize(path) == chosen['size']
            blind = [
                host for host, seen in all_gather_object((socket.gethostname(),
                                                          sees)) if not seen
            ]
            if blind:
                raise ValueError(
                    f'{path} is to be resumed from, and {len(blind)} of the '
                    f'processes do not see it, such as one on {blind[0]}: the '
                    'work dir has to be a folder that all machines share.')
        return path

    def before_train(self, runner: Runner) -> None:
        """Write through the backend of whole files; remove leftovers."""
        if self._is_local(runner):
            self.backend_args = dict(BACKEND)
        super().before_train(runner)
        if isinstance(self.file_backend, WholeFileBackend):
            self._remove_leftovers(runner)

    def _folder(self, runner: Runner) -> str:
        """Where checkpoints go, as MMEngine says it in ``before_train``."""
        if self.out_dir is None or self.out_dir == runner.work_dir:
            return runner.work_dir
        return osp.join(self.out_dir,
                        osp.basename(runner.work_dir.rstrip(osp.sep)))

    def _is_local(self, runner: Runner) -> bool:
        if self.file_client_args is not None:
            return False
        backend = get_file_backend(self.out_dir or runner.work_dir,
                                   backend_args=self.backend_args)
        return isinstance(backend, LocalBackend)

    @master_only
    def _remove_leftovers(self, runner: Runner) -> None:
        templates = [*TEMPLATES, self.filename_tmpl, 'best_{}.pth', POINTER]
        for folder in dict.fromkeys([runner.work_dir, self.out_dir]):
            for name in remove_leftovers(folder, templates):
                runner.logger.info(f'Removed {osp.join(folder, name)}, which '
                                   'a killed run had begun to write.')

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict) -> None:
        """Save, then point to the file, then remove what is outdated."""
        ids = [*getattr(self, 'keep_ckpt_ids', ())]
        if ids[-1:] != [step]:
            ids.append(step)
        if self.max_keep_ckpts > 0:
            # With the outdated ones: a run that is killed before it removes
            # them does so when it resumes.
            runner.message_hub.update_info('keep_ckpt_ids', ids)
        path = self._path(step)
        runner.message_hub.update_info('last_ckpt', path)
        runner.call_hook('before_gather_state')
        runner.save_checkpoint(self.out_dir, self.filename_tmpl.format(step),
                               self.file_client_args,
                               save_optimizer=self.save_optimizer,
                               save_param_scheduler=self.save_param_scheduler,
                               meta=meta, by_epoch=self.by_epoch,
                               backend_args=self.backend_args, **self.args)
        self.last_ckpt = path
        if is_main_process():
            WholeFileBackend().put_text(path, osp.join(runner.work_dir,
                                                       POINTER))
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(ids, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids',
                                           [*self.keep_ckpt_ids])
            for old in map(self._path, ids[:-self.max_keep_ckpts]):
                if is_main_process() and self.file_backend.isfile(old):
                    self.file_backend.remove(old)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir,
                                           self.filename_tmpl.format(step))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save as MMEngine does, but remove the previous best afterwards."""
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = runner.message_hub.runtime_info
        for path in later.removed:
            if path not in (best[key] for key in best
                            if key.startswith('best_ckpt')):
                backend.remove(path)

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        """Write the ``published_keys`` alone, named by their checksum."""
        checkpoint = CheckpointLoader.load_checkpoint(ckpt_path, 'cpu')
        content = to_bytes({
            key: value
            for key, value in checkpoint.items() if key in self.published_keys
        })
        name = (f'{osp.splitext(ckpt_path)[0]}-'
                f'{hashlib.sha256(content).hexdigest()[:8]}.pth')
        self.file_backend.put(content, name)
        runner.logger.info(f'The checkpoint ({ckpt_path}) is published to '
                           f'{name}.')


class _RemoveLater:
    """A file backend that notes what is to be removed."""

    def __init__(self, backend):
        self._backend, self.removed = backend, []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Note ``path``."""
        self.removed.append(path)
