# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Whatever stops a run, it goes on, and ends as if nothing had happened."""
import random
import time
from pathlib import Path

import pytest
import torch
from lives import (assert_same_end, end_of, finish, kill_at, start, train)

EVERY_ITERATION = {
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.max_keep_ckpts': 2}


def kill_again_and_again(folder, kills, epochs, seed):
    """Random kills and resumes, then to the end; returns their iterations."""
    changes = {**EVERY_ITERATION, 'train_cfg.max_epochs': epochs}
    begin = time.monotonic()
    alone, killed = folder / 'alone', folder / 'killed'
    assert finish(start(folder / 'alone.log', train, str(alone), changes)
                  ) == [0], (folder / 'alone.log').read_text()[-2000:]
    # So long that all of them together get half of the way.
    mean = (time.monotonic() - begin) / kills / 2
    draw, changes['resume'] = random.Random(seed), True
    died = []
    for _ in range(kills):
        code = kill_at(draw.uniform(0, 2 * mean), folder / 'killed.log',
                       killed, changes)
        assert code == -9, (folder / 'killed.log').read_text()[-3000:]
        pointer = killed / 'last_checkpoint'
        died.append(int(Path(pointer.read_text()).stem.split('_')[1])
                    if pointer.exists() else 0)
    assert finish(start(folder / 'killed.log', train, str(killed), changes)
                  ) == [0], (folder / 'killed.log').read_text()[-3000:]
    assert_same_end(end_of(alone), end_of(killed))
    return died


def test_three_random_kills_change_nothing(tmp_path):
    died = kill_again_and_again(tmp_path, kills=3, epochs=4, seed=0)
    assert died == sorted(died)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_twenty_random_kills_change_nothing(tmp_path, seed):
    died = kill_again_and_again(tmp_path, kills=20, epochs=20, seed=seed)
    print('last checkpoint at each kill:', died)
    assert died == sorted(died) and died[-1] > died[0]
    assert len({*died}) > 5  # it went on between the kills
