# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From a config file and the flags of a tool to a Runner that can start."""
from .config import is_detection, load_config
from .mistakes import check_config
from .processes import join_processes, leave_processes
from .required_files import (check_annotation_files, check_checkpoint,
                             check_pretrained_file)
from .runner import (EmptyDatasetError, build_runner, check_all_loaded,
                     check_batches, check_training, dump_predictions,
                     nothing_left_behind, train)
from .settings import (add_checks, drop_disabled_hooks, leave_out_validation,
                       replace_hooks, resume_from, scale_learning_rate,
                       set_precision, set_up_loader, set_up_training,
                       set_work_dir)

__all__ = [
    'EmptyDatasetError', 'add_checks', 'build_runner', 'check_all_loaded',
    'check_annotation_files', 'check_batches', 'check_checkpoint',
    'check_config', 'check_pretrained_file', 'check_training',
    'drop_disabled_hooks', 'dump_predictions', 'is_detection',
    'join_processes', 'leave_out_validation', 'leave_processes', 'load_config',
    'nothing_left_behind', 'replace_hooks', 'resume_from',
    'scale_learning_rate', 'set_precision', 'set_up_loader', 'set_up_training',
    'set_work_dir', 'train']
