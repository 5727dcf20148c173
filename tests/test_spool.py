# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Rows in memory and on a disk are the rows that were added."""
import errno
import io
from collections import namedtuple

import numpy as np
import pytest

from us3l_mm.evaluation import spool
from us3l_mm.evaluation.spool import Spool, check_space


def open_files(folder):
    """Deleted files in ``folder`` that this process has mapped."""
    with open('/proc/self/maps') as file:
        return [line for line in file if str(folder) in line]


@pytest.mark.parametrize('limit', [10**6, 50, 0])
@pytest.mark.parametrize('shape, dtype', [((5, ), np.float32), ((), np.int64)])
def test_rows_come_back_as_they_were_added(monkeypatch, tmp_path, shape, dtype,
                                           limit):
    monkeypatch.setattr(spool, 'MAX_IN_MEMORY', limit)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    parts = [
        np.random.default_rng(n).integers(0, 99, (n, *shape)).astype(dtype)
        for n in (4, 1, 7)]
    rows = Spool()
    for part in parts:
        rows.add(part)
    array = rows.array()
    assert array.dtype == dtype
    assert array.tolist() == np.concatenate(parts).tolist()
    on_disk = isinstance(array, np.memmap)
    assert on_disk == (array.nbytes > limit)
    array[0] = 1  # they are the caller's
    # The file has no name, and goes with the array.
    assert not list(tmp_path.iterdir())
    assert len(open_files(tmp_path)) == on_disk
    del array
    assert not open_files(tmp_path)


def test_columns_of_a_larger_table_are_added_as_rows():
    table = np.arange(12.0).reshape(3, 4)
    rows = Spool()
    rows.add(table[:, 1:3])
    assert rows.array().tolist() == table[:, 1:3].tolist()


def test_a_full_disk_is_an_error_that_says_what_to_do():

    class Full(io.BytesIO):

        def write(self, _):
            raise OSError(errno.ENOSPC, 'No space left on device')

    rows = Spool()
    rows.file = Full()
    with pytest.raises(OSError, match='No space left.*TMPDIR') as caught:
        rows.add(np.zeros(3))
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_without_room_is_refused_before_any_work(monkeypatch):
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr('shutil.disk_usage', lambda _: usage(6 * 10**9))
    monkeypatch.setattr(spool, 'MAX_IN_MEMORY', 10**9)
    check_space(10**6, [1500, 250, 250])  # 6 GB, the others in memory
    with pytest.raises(
            OSError, match=r'1,000,000 images take 7\.2 GB.* has 6\.0 GB '
            'free.*TMPDIR'):
        check_space(10**6, [1500, 250, 300])
