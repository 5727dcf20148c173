# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What is measured on a GPU, in pieces of which the finished ones rest."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PLAN = ROOT / 'tools/benchmarks/gpu_plan.sh'
PIECES = [
    'tests', 'cifar', 'cifar-bfloat16', 'cifar-views', 'cifar-compile', 'in1k',
    'in1k-bfloat16', 'in1k-views', 'in1k-compile', 'floor', 'plain', 'lightly',
    'pretrain']
# Stands for Python: notes its arguments; FAIL is a word that makes it fail,
# and SLOW one that makes it wait.
PYTHON = '''#!/bin/sh
echo "$@" >>"$NOTES"
case "$*" in *"${FAIL:-nothing}"*) exit 3 ;; esac
case "$*" in *"${SLOW:-nothing}"*) exec sleep 60 ;; esac
'''


@pytest.fixture
def plan(tmp_path):
    """Runs the plan with a stand-in for Python; calls it made, and output."""
    python, notes = tmp_path / 'python', tmp_path / 'notes'
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*words, code=0, **variables):
        notes.write_text('')
        done = subprocess.run([
            'bash', str(PLAN),
            str(tmp_path / 'out'), *map(str, words)], env=dict(
                os.environ, PYTHON=str(python), NOTES=str(notes), **variables),
                              capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return notes.read_text().splitlines(), done.stdout + done.stderr

    return run


def test_finished_pieces_are_left_out(plan, tmp_path):
    calls, output = plan('--data', tmp_path, code=1, FAIL='resnet50')
    failed = [piece for piece in PIECES if piece.startswith('in1k')]
    states = dict(line.split(': ', 1) for line in output.splitlines())
    assert [*states] == PIECES
    for piece in PIECES:
        assert states[piece].startswith('failed' if piece in
                                        failed else 'done')
        assert (tmp_path / f'out/{piece}.log').exists()
    assert len(calls) == len(PIECES) + 1  # asks whether lightly is there
    calls, output = plan('--data', tmp_path)
    assert len(calls) == 4 and all('resnet50' in call for call in calls)
    calls, output = plan('--data', tmp_path)
    assert not calls and output.count('done before') == len(PIECES)


def test_settings_of_the_pieces(plan):
    calls, _ = plan('cifar', 'cifar-compile', 'plain')
    plain, compiled, against = calls
    assert '--synthetic' in plain and '--batch-size 512' in plain
    assert '--settings float32+channels-first float32 amp' in plain
    assert 'compile' not in plain and '--against' not in plain
    assert compiled.endswith('amp amp+compile amp+cuda-graphs')
    assert against.endswith('--against plain')


def test_a_piece_has_its_time(plan, tmp_path):
    _, output = plan('tests', code=1, SLOW='pytest', LIMIT='1')
    assert 'tests: failed with 124' in output
    # Pre-training goes on next time, and is not done.
    calls, output = plan('pretrain', SLOW='train.py', LIMIT='1',
                         DATA=str(tmp_path))
    assert 'pretrain: goes on in the next run' in output
    assert '--resume' in calls[0] and f'data_root={tmp_path}' in calls[0]
    assert not (tmp_path / 'out/pretrain.done').exists()


def test_what_is_missing_is_left_out(plan):
    _, output = plan('pretrain', 'lightly', FAIL='lightly')
    assert 'pretrain: left out, as there is no --data' in output
    assert 'lightly: left out, as lightly is not installed' in output


@pytest.mark.parametrize('words, message', [
    (['everything'], 'there is no piece everything; there are tests cifar'),
    (['--data', 'absent'], '--data absent: there is no such file'),
    (['--data'], 'usage:'), (['--huge'], 'usage:')])
def test_mistakes(plan, tmp_path, words, message):
    calls, output = plan(*words, code=2)
    assert message in output and not calls
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_the_whole_plan_without_a_gpu(tmp_path):
    pixels = np.zeros((8, 32, 32, 3), np.uint8)
    np.savez(tmp_path / 'images.npz', x_train=pixels, y_train=np.zeros(8, int))
    out = tmp_path / 'out'
    subprocess.run([
        'bash',
        str(PLAN),
        str(out), '--tiny', '--data',
        str(tmp_path / 'images.npz')],
                   env=dict(os.environ, PYTHON=sys.executable), check=True)
    assert (out / 'pretrain/epoch_1.pth').exists()
    for piece in ('cifar', 'in1k'):
        rows = json.loads((out / f'{piece}.json').read_text())
        assert [row['setting'] for row in rows['settings_in_turn']] == [
            'float32+channels-first', 'amp']
    for piece in ('floor', 'plain'):
        rows = json.loads((out / f'{piece}.json').read_text())['against']
        assert all(row['ratio'] > 0 for row in rows)
