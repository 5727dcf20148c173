# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files are read without executing them, and written whole or not at all."""
import builtins
import errno
import os
import pickle
import random
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import get_torch_safe_globals
from small_run import small_cfg

from us3l_mm.apis import load_backbone
from us3l_mm.export.foreign import from_plain
from us3l_mm.fileio import (check_resumable, check_writable, load_weights,
                            save_atomically, sha256, writing)

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
    assert found['meta'] == (dict(epoch=3) if 'meta' in content else {})


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


@pytest.mark.parametrize('read', [
    load_weights, load_backbone,
    lambda path: from_plain(load_weights(path)['state_dict']),
    lambda path: CheckpointLoader.load_checkpoint(path, logger='silent')])
def test_a_flipped_bit_is_found_by_its_checksum(tmp_path, read):
    file = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=WEIGHTS), file)
    content = bytearray(file.read_bytes())
    content[content.index(WEIGHTS['layer1.weight'].numpy().tobytes())] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # which does not notice it
    with pytest.raises(
            ValueError, match='weights.pth is damaged: the checksum '
            r'of its part weights/data/\d is wrong. Copy'):
        read(str(file))


@pytest.mark.parametrize('name, value, message', [
    ('b.weight', torch.ones(3).int(), 'has b.weight as torch.int32, and 0 '),
    ('b.weight', torch.ones(3).bool(), 'has b.weight as torch.bool'),
    ('b.running_var_w0500000', torch.ones(3).long(), 'as torch.int64'),
    ('weight', torch.ones(3, dtype=torch.complex64), 'as torch.complex64'),
    ('b.scale', torch.tensor([1., float('nan')]),
     '1 of the 2 values of b.scale are NaN or infinite. The training div'),
    ('b.weight', torch.full((2, 3), -float('inf')), '6 of the 6 values of b.'),
    ('b.weight', torch.tensor([float('inf')]).half(), '1 of the 1 values'),
    ('b.mask', torch.tensor([0., float('nan')]), '1 of the 2 values'),
    ('b.weight', torch.ones(3).to_sparse(), 'as a torch.sparse_coo tensor'),
    ('b.weight', torch.ones(3, device='meta'), 'tensor on meta'),
    (3, torch.ones(3), 'holds 3 as a torch.strided tensor on cpu')])
def test_what_cannot_be_a_weight_is_refused(tmp_path, name, value, message):
    file = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict={'a.weight': torch.ones(2), name: value}), file)
    with pytest.raises(ValueError, match=message):
        load_weights(file)


def test_what_may_be_infinite_or_an_integer_is_read(tmp_path):
    file = str(tmp_path / 'weights.pth')
    weights = {
        'attn_mask': torch.tensor([0., -float('inf')]),
        'observer.min_val': torch.tensor(float('inf')),
        'position_ids': torch.arange(3),
        'bn.num_batches_tracked': torch.tensor(3),
        'largest': torch.tensor([torch.finfo(torch.float).max] * 3),
        'small.weight': torch.ones(2).to(torch.float8_e4m3fn),
        'empty.weight': torch.ones(0),
        'half.bias': torch.ones(2).bfloat16()}
    torch.save(dict(state_dict=weights), file)
    assert load_weights(file)['state_dict'].keys() == weights.keys()


def test_a_description_of_another_kind_is_left_out(tmp_path):
    file = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=WEIGHTS, meta=['text']), file)
    assert load_weights(file)['meta'] == {}


def test_versions_of_layers_are_kept(tmp_path):
    file = str(tmp_path / 'weights.pth')
    weights = torch.nn.BatchNorm2d(2).state_dict()
    torch.save(dict(state_dict=weights), file)
    found = load_weights(file)['state_dict']
    assert found._metadata == weights._metadata
    assert found._metadata['']['version'] == 2


def test_a_checkpoint_is_resumed_from_only_with_a_finite_optimizer():
    state = dict(momentum_buffer=torch.ones(2))
    content = dict(meta=dict(iter=1), optimizer=dict(state={0: state}))
    check_resumable('a.pth', content)
    state['momentum_buffer'][1] = float('nan')
    with pytest.raises(
            ValueError, match='a.pth cannot be resumed from: '
            'optimizer.state.0.momentum_buffer is NaN'):
        check_resumable('a.pth', content)
    content['meta'] = dict(epoch=3)
    with pytest.raises(ValueError, match='does not say at which iteration'):
        check_resumable('a.pth', content)


def test_numbers_of_numpy_are_read(tmp_path):
    file = str(tmp_path / 'weights.pth')
    numbers = dict(a=np.float64(0.5), b=np.arange(6).reshape(2, 3).T,
                   c=np.array([1, 2], '>i4'), d=np.ones((0, 2), np.float32))
    torch.save(dict(state_dict=WEIGHTS, meta=numbers), file)
    found = load_weights(file)['meta']
    for name, value in numbers.items():
        np.testing.assert_array_equal(found[name], value)
        # NumPy itself turns big-endian numbers round.
        assert found[name].dtype == value.dtype.newbyteorder('=')
    # Written again, they are NumPy's own once more.
    torch.save(found['b'], file)
    assert type(torch.load(file, weights_only=False)) is np.ndarray


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
