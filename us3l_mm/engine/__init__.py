# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .hooks import *  # noqa: F403
from .optimizers import *  # noqa: F403
from .width_val_loop import WidthTestLoop, WidthValLoop  # noqa: F401
from .wrappers import *  # noqa: F403
