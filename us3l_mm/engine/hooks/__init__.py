# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .atomic_checkpoint_hook import AtomicCheckpointHook
from .batch_augmentation_hook import BatchAugmentationHook
from .calibration_hook import CalibrationHook
from .check_annotations_hook import CheckAnnotationsHook
from .check_frozen_hook import CheckFrozenHook
from .check_pretrained_hook import CheckPretrainedHook
from .collapse_monitor_hook import CollapseMonitorHook
from .compile_hook import CompileHook
from .dynamic_sampler_hook import DynamicSamplerHook
from .exact_resume_hook import ExactResumeHook
from .gradient_diagnosis_hook import GradientDiagnosisHook
from .group_reg_hook import GroupRegHook
from .non_finite_hook import NonFiniteHook
from .preflight_hook import PreflightHook
from .progress_hook import ProgressHook
from .unreadable_images_hook import UnreadableImagesHook
from .width_knn_hook import WidthKNNHook

__all__ = [
    'AtomicCheckpointHook', 'BatchAugmentationHook', 'CalibrationHook',
    'CheckAnnotationsHook', 'CheckFrozenHook', 'CheckPretrainedHook',
    'CollapseMonitorHook', 'CompileHook', 'DynamicSamplerHook',
    'ExactResumeHook', 'GradientDiagnosisHook', 'GroupRegHook',
    'NonFiniteHook', 'PreflightHook', 'ProgressHook', 'UnreadableImagesHook',
    'WidthKNNHook']
