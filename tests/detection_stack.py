# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Skips, naming what is missing, where no detector can be built."""
import pytest

from us3l_mm.stack import check_detection


def need_detection() -> None:
    """To be called at the top of a test module."""
    try:
        check_detection()
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)
