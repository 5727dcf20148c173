# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import pytest

from .files import write_files


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    """The paths of files of weights, by name."""
    return write_files(tmp_path_factory.mktemp('files'))
