# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Whatever stops a run, it goes on, and ends as if nothing had happened."""
import ctypes
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lives import (assert_same_end, cfg_of, clock_ahead, die_at_write, end_of,
                   finish, kill_after, other_weights, ranks, run_tool,
                   small_files, start, stop_at, train)

from us3l_mm.fileio import find_checkpoint, load_weights

TRAIN = Path(__file__).parents[1] / 'tools/train.py'
EVERY_ITERATION = {
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.max_keep_ckpts': 2}


def kill_again_and_again(folder, kills, epochs, seed):
    """Random kills and resumes, then to the end."""
    changes = {**EVERY_ITERATION, 'train_cfg.max_epochs': epochs}
    alone, killed = folder / 'alone', folder / 'killed'
    left_alone = start(folder / 'alone.log', train, str(alone), changes)
    draw, done, log = random.Random(seed), 0, folder / 'killed.log'
    for _ in range(kills):
        iterations = draw.choice([None, 0, 1, 2, 3])
        code = kill_after(iterations, draw.random(), log, killed, {
            **changes, 'resume': True})
        assert code == -9, log.read_text()[-3000:]
        least, done = done + (iterations or 0), last_iteration(killed)
        assert done >= least  # it went on where the life before had ended
    assert 0 < done < 3 * epochs
    assert finish(left_alone,
                  start(log, train, str(killed), {
                      **changes, 'resume': True})) == [
                          0, 0], log.read_text()[-3000:]
    assert_same_end(end_of(alone), end_of(killed))


def last_iteration(work_dir) -> int:
    pointer = work_dir / 'last_checkpoint'
    return (int(Path(pointer.read_text()).stem.split('_')[1])
            if pointer.exists() else 0)


def test_random_kills_change_nothing(tmp_path):
    kill_again_and_again(tmp_path, kills=3, epochs=4, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_twenty_random_kills_change_nothing(tmp_path, seed):
    kill_again_and_again(tmp_path, kills=20, epochs=25, seed=seed)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The folder of a run that is left alone."""
    folder = tmp_path_factory.mktemp('alone')
    assert finish(start(folder / 'log', train, str(folder / 'run'))) == [
        0], (folder / 'log').read_text()
    return folder / 'run'


def resumed(folder, changes=None) -> tuple:
    """The end of the run in ``folder / 'run'``, which is resumed, and what
    it said."""
    log = folder / 'resumed.log'
    assert finish(
        start(log, train, str(folder / 'run'), {
            **(changes or {}), 'resume': True})) == [0], log.read_text()
    return end_of(folder / 'run'), log.read_text()


# Six steps a checkpoint: the file reaches the disk, takes its name, the
# folder reaches the disk; then the pointer likewise. Old files go last.
@pytest.mark.parametrize(
    'step, left',
    [
        (7, 1),  # the second file is half written
        (9, 1),  # it has its name, the pointer is that of the first
        (11, 1),  # the new pointer is beside its place
        (13, 2),  # nothing but the old file's removal is missing
    ])
def test_a_kill_while_writing_leaves_a_whole_checkpoint(
        tmp_path, alone, step, left):
    keep_one = {'default_hooks.checkpoint.max_keep_ckpts': 1}
    assert finish(
        start(tmp_path / 'log', train, str(tmp_path / 'run'), keep_one, None,
              None, (die_at_write, step))) == [-9]
    told = []
    found = find_checkpoint(str(tmp_path / 'run'), say=told.append)
    assert found == str(tmp_path / f'run/epoch_{left}.pth') and not told
    leftovers = [*(tmp_path / 'run').glob('.*')]
    assert len(leftovers) == (step in (7, 11))
    if step == 7:
        end, _ = resumed(tmp_path, keep_one)
        assert_same_end(end_of(alone), end)
        assert not [*(tmp_path / 'run').glob('.*')]
        assert [p.name for p in (tmp_path / 'run').glob('epoch_*')] == [
            'epoch_4.pth']


def test_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path, alone):
    # Three iterations an epoch: killed in the third epoch, of stage 2.
    run = tmp_path / 'run'
    assert finish(start(tmp_path / 'log', train, str(run), None, None, 7)) == [
        -9]
    assert not (run / 'epoch_3.pth').exists()
    end, _ = resumed(tmp_path)
    assert_same_end(end_of(alone), end)
    assert any(key.startswith('teacher.') for key in end[0])


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, alone):
    run = tmp_path / 'run'
    assert finish(start(tmp_path / 'log', train, str(run), None, None, 8)) == [
        -9]
    content = (run / 'epoch_2.pth').read_bytes()
    (run / 'epoch_2.pth').write_bytes(content[:len(content) // 2])
    end, said = resumed(tmp_path)
    assert re.search('Passed over: .*epoch_2.pth is damaged', said)
    assert_same_end(end_of(alone), end)


def test_a_full_disk_ends_the_run_and_nothing_is_lost(tmp_path, alone):
    run = tmp_path / 'run'
    assert finish(
        start(tmp_path / 'log', train, str(run), None, None, None,
              (small_files, 2))) == [1]
    said = (tmp_path / 'log').read_text()
    assert re.search(
        r'epoch_3.pth was not written: File too large: it has '
        rf'[\d.]+ MB and {run} has [\d,.]+ MB free', said)
    assert (run / 'last_checkpoint').read_text() == str(run / 'epoch_2.pth')
    assert not [*run.glob('.*')]
    end, _ = resumed(tmp_path)
    assert_same_end(end_of(alone), end)


def on_a_small_disk(folder, size):
    """Train on a file system of so many bytes, which no other process sees."""
    (folder / 'disk').mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(0x10020000):  # CLONE_NEWUSER | CLONE_NEWNS
        sys.exit(f'no disk: {os.strerror(ctypes.get_errno())}')
    for name, text in (('setgroups', 'deny'), ('uid_map', f'0 {user} 1'),
                       ('gid_map', f'0 {group} 1')):
        Path('/proc/self', name).write_text(text)
    mounted = subprocess.run([
        'mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', 'disk'],
                             cwd=folder, capture_output=True, text=True)
    if mounted.returncode:
        sys.exit(f'no disk: {mounted.stderr}')
    try:
        train(str(folder / 'disk/run'))
    finally:
        shutil.copytree(folder / 'disk/run', folder / 'run')


@pytest.mark.skipif(not sys.platform.startswith('linux'),
                    reason='a small disk is made by a call of Linux')
def test_a_disk_that_is_really_full(tmp_path, alone):
    """One that holds two checkpoints and a half."""
    size = (alone / 'epoch_1.pth').stat().st_size * 5 // 2
    code = finish(start(tmp_path / 'log', on_a_small_disk, tmp_path, size))
    said = (tmp_path / 'log').read_text()
    if 'no disk: ' in said:
        pytest.skip(f'no small disk can be mounted here: {said}')
    assert code == [1] and re.search(
        'epoch_[23].pth was not written: No space left on device', said), said
    written = [*(tmp_path / 'run').glob('epoch_*.pth')]
    assert 1 <= len(written) <= 2 and not [*(tmp_path / 'run').glob('.*')]
    for path in written:
        assert load_weights(str(path))['meta']['iter']
    end, _ = resumed(tmp_path)
    assert_same_end(end_of(alone), end)


@pytest.mark.parametrize('how, says', [
    ('dies', r'train.py: DataLoader worker .* exited unexpectedly'),
    ('hangs', 'train.py: DataLoader timed out after 2 seconds')])
def test_a_worker_that_ends_or_hangs_is_an_error(tmp_path, how, says):
    cfg = cfg_of(tmp_path / 'run')
    cfg.train_dataloader.update(num_workers=1, timeout=2)
    cfg.train_dataloader.dataset.pipeline.insert(
        0, dict(type='mmengine.Fails', sample=5, how=how))
    cfg.dump(tmp_path / 'cfg.py')
    log = tmp_path / 'log'
    assert finish(start(log, run_tool, TRAIN, [tmp_path / 'cfg.py'], {}),
                  timeout=60) == [1]
    assert re.match(says, log.read_text().splitlines()[-1])


def logs(folder) -> str:
    return '\n'.join(p.read_text() for p in folder.glob('*.log'))


@pytest.mark.ddp
def test_the_loss_of_a_process_ends_the_others(tmp_path):
    begin = time.monotonic()
    codes = finish(*ranks(tmp_path, tmp_path / 'run', [(), ({}, None, 4)]),
                   timeout=60)
    assert codes == [1, -9], logs(tmp_path)
    assert time.monotonic() - begin < 60


@pytest.mark.ddp
def test_a_process_that_hangs_ends_the_others(tmp_path):
    one, other = ranks(tmp_path, tmp_path / 'run',
                       [(), ({}, None, None, (stop_at, 4))])
    try:
        assert finish(one, timeout=80) == [1], logs(tmp_path)
    finally:
        other.kill()
        other.join()
    # gloo says it in one of two ways.
    assert re.search('imed out|imeout', (tmp_path / 'run-0.log').read_text())


@pytest.mark.ddp
@pytest.mark.parametrize('other, says', [
    (({
        'randomness.seed': 1}, ), "the config key randomness.seed is '1' on "
     "rank 1 .* and '0' on rank 0"),
    (({}, None, None, (other_weights, )), 'the checksum of the weights is')])
def test_processes_that_disagree_are_refused(tmp_path, other, says):
    assert finish(*ranks(tmp_path, tmp_path / 'run', [(), other])) == [1, 1]
    assert re.search(says, logs(tmp_path)), logs(tmp_path)


@pytest.mark.ddp
def test_clocks_may_differ_and_so_may_the_random_states(tmp_path):
    each = {'randomness.diff_rank_seed': True}
    run = tmp_path / 'run'
    assert finish(
        *ranks(tmp_path, run, [(each, ), (each, None, None,
                                          (clock_ahead, ))])) == [
                                              0, 0], logs(tmp_path)
    assert_same_end(end_of(run, 0), end_of(run, 1))
    notes = [torch.load(run / f'notes-{rank}.pth') for rank in range(2)]
    for i, noted in notes[0].items():
        assert noted['widths'] == notes[1][i]['widths']
    assert len([p for p in run.iterdir() if p.is_dir()]) == 1  # of the log
