# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .group_regulariser import GroupRegulariser
from .info_nce import InfoNCELoss

__all__ = ['GroupRegulariser', 'InfoNCELoss']
