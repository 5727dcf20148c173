# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files are read without executing them, and written whole or not at all."""
import builtins
import errno
import os
import pickle
import random
import subprocess
import zipfile

import pytest
import torch
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_torch_safe_globals
from small_run import small_cfg

from us3l_mm.fileio import (check_writable, load_weights, save_atomically,
                            sha256, writing)

WEIGHTS = {f'layer{i}.weight': torch.randn(40, 40) for i in range(3)}


class Runs:
    """What a pickle needs to call a function when it is read."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def write_a_trace(path):
    with open(path, 'w') as file:
        file.write('executed')


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('content', [
    dict(state_dict=WEIGHTS, meta=dict(epoch=3)),
    dict(model=WEIGHTS, meta=dict(epoch=3)), WEIGHTS])
def test_weights_are_found(tmp_path, content, zipped):
    file = tmp_path / 'weights.pth'
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found = load_weights(str(file))
    assert found['state_dict'].keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(found['state_dict'][name], value)
    if 'meta' in content:
        assert found['meta'] == dict(epoch=3)


def test_a_checkpoint_of_a_run_is_read(tmp_path):
    cfg = small_cfg(tmp_path, **{'train_cfg.max_epochs': 1})
    runner = Runner.from_cfg(cfg)
    runner.train()
    found = load_weights(str(tmp_path / 'epoch_1.pth'))
    expected = runner.model.state_dict()
    assert found['state_dict'].keys() == expected.keys()
    assert 'SlimmableResNet_CIFAR' in found['meta']['cfg']
    assert len(found['message_hub']['log_scalars']['train/loss'].data[0]) == 3


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_with_code_is_refused_and_not_executed(tmp_path, zipped):
    trace, file = tmp_path / 'trace', str(tmp_path / 'weights.pth')
    for function in (write_a_trace, os.mkdir, eval):
        torch.save(dict(state_dict=WEIGHTS, extra=Runs(function, str(trace))),
                   file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match='would execute code .*'
                           '--trust-pickle'):
            load_weights(file)
        assert not trace.exists()
    torch.save(dict(state_dict=WEIGHTS, extra=Runs(write_a_trace, str(trace))),
               file)
    load_weights(file, trust_pickle=True)
    assert trace.read_text() == 'executed'


def test_a_file_that_mmengine_would_let_reach_the_builtins_is_refused(
        tmp_path):
    # getattr(getattr(getattr, '__self__'), '__dict__')['abs'] = 'replaced'
    code = (b'\x80\x02cbuiltins\ngetattr\nq\x00(h\x00(h\x00X\x08\x00\x00\x00'
            b'__self__tRX\x08\x00\x00\x00__dict__tRX\x03\x00\x00\x00absX\x08'
            b'\x00\x00\x00replaceds.')
    # The same in a file that torch.save could have written.
    file = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=WEIGHTS), file)
    _replace_pickle(file, code)
    original = builtins.abs
    try:
        with pytest.raises(ValueError, match='would execute code .*__self__'):
            load_weights(str(file))
        assert builtins.abs is original
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            torch.load(file, weights_only=True)
        assert builtins.abs == 'replaced'  # so it was worth refusing
    finally:
        builtins.abs = original


def _replace_pickle(file, code):
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name,
                             code if name.endswith('data.pkl') else content)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_truncated_file_is_called_damaged(tmp_path, zipped):
    file = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=WEIGHTS), file,
               _use_new_zipfile_serialization=zipped)
    content, rng = file.read_bytes(), random.Random(0)
    sizes = [4, 9, 60, len(content) - 1]
    for size in sizes + [rng.randrange(5, len(content)) for _ in range(30)]:
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match='is damaged or was not copied'):
            load_weights(str(file))


@pytest.mark.parametrize('content, message', [
    (b'', 'is not a PyTorch checkpoint: it is empty'),
    (b'# ResNet-50\n', "not a PyTorch checkpoint: it begins with b'# Re'"),
    (b'<!DOCTYPE html>', 'not a PyTorch checkpoint'),
    (pickle.dumps(dict(a=1)), 'is damaged or was not copied'), ])
def test_other_files_are_no_checkpoints(tmp_path, content, message):
    file = tmp_path / 'weights.pth'
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_weights(str(file))


def test_a_file_without_weights_is_refused(tmp_path):
    file = str(tmp_path / 'weights.pth')
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        load_weights(file)
    for content in (dict(epoch=3), [torch.zeros(2)], torch.zeros(2)):
        torch.save(content, file)
        with pytest.raises(ValueError, match='holds no weights'):
            load_weights(file)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / 'sub' / 'weights.pth'
    save_atomically(b'first', str(file))
    save_atomically(dict(state_dict=WEIGHTS), str(file))
    assert load_weights(str(file))['state_dict'].keys() == WEIGHTS.keys()
    assert os.listdir(file.parent) == ['weights.pth']
    assert sha256(__file__) == _sha256(__file__)


def _sha256(path):
    return subprocess.run(['sha256sum', path], capture_output=True, check=True,
                          text=True).stdout.split()[0]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / 'weights.pth'
    file.write_bytes(b'old')

    def full(fd):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(writing.os, 'fsync', full)
    with pytest.raises(OSError, match='weights.pth was not written: No space'):
        save_atomically(dict(state_dict=WEIGHTS), str(file))
    assert os.listdir(tmp_path) == ['weights.pth']
    assert file.read_bytes() == b'old'


def test_an_unwritable_target_is_refused(tmp_path):
    source = tmp_path / 'source.pth'
    source.write_bytes(b'x')
    check_writable(str(tmp_path / 'new' / 'w.pth'), str(source))
    assert os.listdir(tmp_path) == ['source.pth']
    with pytest.raises(ValueError, match='is the checkpoint that is read'):
        check_writable(str(source), str(source))
    for path in (str(tmp_path), os.devnull):
        with pytest.raises(OSError, match='is not an ordinary file'):
            check_writable(path, str(source))
        with pytest.raises(OSError, match='is not an ordinary file'):
            save_atomically(b'x', path)
    with pytest.raises(OSError, match='is not a folder that you may write'):
        check_writable(str(source / 'w.pth'), str(source))
