# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import os.path as osp
import shutil
from typing import Optional, Tuple

from mmengine.dist import (all_gather_object, broadcast_object_list,
                           is_main_process, master_only)
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.runner import Runner

from us3l_mm.engine.mmengine_internals import (SaveThenRemove, is_resuming,
                                               set_start_file, start_file)
from us3l_mm.fileio import (WholeFileBackend, find_checkpoint,
                            remove_leftovers)
from us3l_mm.fileio.finding import POINTER, TEMPLATES
from us3l_mm.registry import HOOKS

MB = 10**6


@HOOKS.register_module()
class AtomicCheckpointHook(SaveThenRemove):
    """MMEngine's ``CheckpointHook``, for runs that may be killed at any time.

    A checkpoint is written to a temporary file and then renamed. Only then
    does ``last_checkpoint`` name it, and only then are outdated checkpoints
    (``max_keep_ckpts``, ``save_best``) removed: once there is a whole
    checkpoint, there always is one. Temporary files of a killed run are
    removed when training starts.

    ``resume=True`` without a ``load_from`` resumes from the newest checkpoint
    that can be read; rank 0 chooses it for all processes. Without any
    checkpoint, training starts from scratch with a warning.

    A disk without room for a checkpoint is an error before training.

    Remote checkpoint folders keep their own backend, as object stores write
    whole objects.

    Args:
        *args: Arguments of ``CheckpointHook``.
        **kwargs: The same, by name.
    """

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from, the same on all processes."""
        if not is_resuming(runner) or start_file(runner) is not None:
            return
        path = self._choose(runner)
        set_start_file(runner, path)
        if path is None:
            runner.logger.warning(
                f'There is no checkpoint in {runner.work_dir} to resume from: '
                'training starts from scratch.')

    def _choose(self, runner: Runner) -> Optional[str]:
        answer: list = [self._find(runner) if is_main_process() else None]
        broadcast_object_list(answer)
        path, error = answer[0]
        if error is not None:
            raise ValueError(error)
        if path is not None and not all(all_gather_object(osp.isfile(path))):
            raise ValueError(
                f'{path} is to be resumed from, and not all processes see it: '
                'the work dir has to be a folder that all machines share.')
        return path

    def _find(self, runner: Runner) -> Tuple[Optional[str], Optional[str]]:
        """The newest whole checkpoint, or an error."""
        folders = [self._folder(runner)] if self._is_local(runner) else []
        try:
            return find_checkpoint(runner.work_dir, folders, [
                *TEMPLATES, self.filename_tmpl], runner.logger.warning), None
        except (ValueError, OSError) as error:
            return None, str(error)  # raised on all processes

    def before_train(self, runner: Runner) -> None:
        """Write through the backend of whole files; remove leftovers."""
        if self._is_local(runner):
            self.backend_args = dict(backend='us3l_mm.whole_files')
        super().before_train(runner)
        if isinstance(self.file_backend, WholeFileBackend):
            self._remove_leftovers(runner)
            self._check_space(runner)

    @master_only
    def _check_space(self, runner: Runner) -> None:
        """Raise OSError unless a checkpoint fits onto the disk."""
        model = runner.model
        needed = sum(t.nbytes for t in model.state_dict().values())
        # The optimizer keeps at least one value, such as a momentum, for each
        # parameter.
        if self.save_optimizer:
            needed += sum(p.nbytes for p in model.parameters()
                          if p.requires_grad)
        free = shutil.disk_usage(self.out_dir).free
        if free < needed:
            raise OSError(
                f'A checkpoint takes about {needed / MB:,.0f} MB, and '
                f'{self.out_dir} has {free / MB:,.0f} MB left. Free some '
                'space, or choose a folder on another disk by --work-dir.')

    def _folder(self, runner: Runner) -> str:
        """Where checkpoints go, as MMEngine says it in ``before_train``."""
        if self.out_dir is None or self.out_dir == runner.work_dir:
            return runner.work_dir
        return osp.join(self.out_dir,
                        osp.basename(runner.work_dir.rstrip(osp.sep)))

    def _is_local(self, runner: Runner) -> bool:
        return self.file_client_args is None and isinstance(
            get_file_backend(self.out_dir or runner.work_dir,
                             backend_args=self.backend_args), LocalBackend)

    @master_only
    def _remove_leftovers(self, runner: Runner) -> None:
        templates = [*TEMPLATES, self.filename_tmpl, 'best_{}.pth', POINTER]
        for folder in dict.fromkeys([runner.work_dir, self.out_dir]):
            for name in remove_leftovers(folder, templates):
                runner.logger.info(f'Removed {osp.join(folder, name)}, which '
                                   'a killed run had begun to write.')
