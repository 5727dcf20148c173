# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Checkpoints are written as a whole, and found again if they are whole."""
import errno
import os
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from small_run import small_cfg

from us3l_mm.apis.launching import replace_hooks
from us3l_mm.fileio import (WholeFileBackend, find_checkpoint, load_weights,
                            remove_leftovers, writing)


def write(folder, *names):
    for name in names:
        number = int(re.search(r'\d+', name).group())
        torch.save(
            dict(state_dict=dict(weight=torch.full((500, ), float(number))),
                 meta=dict(iter=number)), folder / name)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((9, ), 3.).numpy().tobytes()) + 40] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b'')


def other_file(path):
    path.write_text('no weights')


def without_iteration(path):
    torch.save(dict(state_dict=dict(weight=torch.ones(3))), path)


@pytest.mark.parametrize('damage, says', [
    (cut, 'epoch_3.pth is damaged'),
    (flip_a_bit, 'epoch_3.pth is damaged: the checksum of its part'),
    (empty, 'epoch_3.pth is not a PyTorch checkpoint: it is empty'),
    (other_file, 'epoch_3.pth is not a PyTorch checkpoint'),
    (without_iteration, 'epoch_3.pth .*does not say at which iteration'), ])
def test_a_broken_newest_file_is_named_and_passed_over(tmp_path, damage, says):
    write(tmp_path, *(f'epoch_{i}.pth' for i in (1, 2, 3, 10)))
    (tmp_path / 'epoch_10.pth').unlink()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    told = []
    assert find_checkpoint(str(tmp_path), say=told.append) == str(
        tmp_path / 'epoch_3.pth') and not told
    damage(tmp_path / 'epoch_3.pth')
    assert find_checkpoint(str(tmp_path),
                           say=told.append) == str(tmp_path / 'epoch_2.pth')
    assert len(told) == 1 and re.search(f'Passed over: .*{says}', told[0])


def test_several_broken_files_in_a_row(tmp_path):
    # By number: as text, epoch_10 would come before epoch_9.
    write(tmp_path, *(f'epoch_{i}.pth' for i in range(8, 12)))
    told = []
    for number in (11, 10, 9):
        cut(tmp_path / f'epoch_{number}.pth')
    assert find_checkpoint(str(tmp_path),
                           say=told.append) == str(tmp_path / 'epoch_8.pth')
    assert [re.search(r'epoch_\d+', text).group()
            for text in told] == ['epoch_11', 'epoch_10', 'epoch_9']
    cut(tmp_path / 'epoch_8.pth')
    with pytest.raises(
            ValueError, match='None of the 4 checkpoints in .*can '
            'be read.*leave out --resume'):
        find_checkpoint(str(tmp_path), say=told.append)


@pytest.mark.parametrize('pointer', ['/nowhere/epoch_7.pth', '', '\0\0\0'])
def test_a_pointer_to_nothing(tmp_path, pointer):
    write(tmp_path, 'epoch_1.pth', 'epoch_2.pth')
    (tmp_path / 'last_checkpoint').write_text(pointer)
    told = []
    assert find_checkpoint(str(tmp_path),
                           say=told.append) == str(tmp_path / 'epoch_2.pth')
    assert bool(told) == pointer.startswith('/')


def test_a_folder_that_was_moved_keeps_its_last_checkpoint(tmp_path):
    write(tmp_path, 'epoch_1.pth', 'epoch_2.pth')
    (tmp_path / 'last_checkpoint').write_text('/old/place/epoch_1.pth')
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')


def test_what_is_no_checkpoint_of_a_run_is_not_resumed_from(tmp_path):
    write(tmp_path, 'best_accuracy_epoch_5.pth', '.epoch_6.123.pth',
          'epoch_7-0a1b2c3d.pth')
    assert find_checkpoint(str(tmp_path)) is None
    write(tmp_path, 'mine7.pth')
    assert find_checkpoint(str(tmp_path), templates=['mine{}.pth']) == str(
        tmp_path / 'mine7.pth')


def test_of_two_kinds_the_newest_by_time_is_taken(tmp_path):
    write(tmp_path, 'iter_900.pth', 'epoch_2.pth')
    for age, name in enumerate(['epoch_2.pth', 'iter_900.pth']):
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')


class Code:

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def test_a_file_with_code_is_neither_executed_nor_passed_over(tmp_path):
    write(tmp_path, 'epoch_1.pth')
    torch.save(
        dict(state_dict=dict(weight=torch.ones(1)), meta=dict(iter=2),
             more=Code(str(tmp_path / 'executed'))), tmp_path / 'epoch_2.pth')
    with pytest.raises(ValueError, match='epoch_2.pth.*would execute code'):
        find_checkpoint(str(tmp_path))
    assert not (tmp_path / 'executed').exists()


def test_a_full_disk_names_file_and_space_and_leaves_the_old_file(
        tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    WholeFileBackend().put(b'old', path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    monkeypatch.setattr(writing.shutil, 'disk_usage',
                        lambda folder: type('Usage', (), dict(free=123456)))
    with pytest.raises(
            OSError, match=r'epoch_1.pth was not written: No space '
            rf'left.*2.0 MB and {tmp_path} has 0.1 MB free.*'
            '--resume') as error:
        WholeFileBackend().put(b'new ' * 500000, path)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['epoch_1.pth']


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    mine = ['.epoch_3.4711.pth', '.last_checkpoint.1', '.best_x_epoch_1.7.pth']
    others = [
        'epoch_3.pth', '.measured.4711.pth', '.epoch_3.pth', '.hidden',
        'last_checkpoint', '.epoch_3.4711.pth.keep']
    for name in mine + others:
        (tmp_path / name).touch()
    removed = remove_leftovers(str(tmp_path), [
        'epoch_{}.pth', 'best_{}.pth', 'last_checkpoint'])
    assert removed == sorted(mine)
    assert {p.name for p in tmp_path.iterdir()} == {*others}
    assert remove_leftovers(str(tmp_path / 'absent'), ['a']) == []


def test_any_config_gets_the_safe_hooks():
    cfg = Config(
        dict(
            default_hooks=dict(checkpoint=dict(type='CheckpointHook',
                                               interval=7, save_best='auto')),
            custom_hooks=[dict(type=CheckpointHook, interval=2)]))
    for _ in range(2):  # twice is once
        replace_hooks(cfg)
        assert cfg.default_hooks.to_dict() == dict(
            checkpoint=dict(type='us3l_mm.AtomicCheckpointHook', interval=7,
                            save_best='auto'),
            logger=dict(type='us3l_mm.ProgressHook'),
            exact_resume=dict(type='us3l_mm.ExactResumeHook'))
    assert cfg.custom_hooks[0].type == 'us3l_mm.AtomicCheckpointHook'
    bare = Config(dict())
    replace_hooks(bare)
    assert bare.default_hooks.checkpoint.interval == 1
    without = Config(dict(default_hooks=dict(checkpoint=None)))
    replace_hooks(without)
    assert without.default_hooks.checkpoint is None


def order_of_writes(monkeypatch):
    """What happens to files, in order."""
    done, replace, remove = [], os.replace, os.remove

    def replaced(source, target):
        replace(source, target)
        done.append(f'+{os.path.basename(target)}')

    def removed(path):
        remove(path)
        done.append(f'-{os.path.basename(path)}')

    monkeypatch.setattr(os, 'replace', replaced)
    monkeypatch.setattr(os, 'remove', removed)
    return done


def test_the_old_checkpoint_goes_after_the_new_one_has_come(
        tmp_path, monkeypatch):
    done = order_of_writes(monkeypatch)
    cfg = small_cfg(
        tmp_path, **{
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            'default_hooks.checkpoint.published_keys': ['meta', 'state_dict'],
            'train_cfg.max_epochs': 3})
    (tmp_path / '.epoch_9.4711.pth').touch()
    Runner.from_cfg(cfg).train()
    pointer = '+last_checkpoint'
    assert done[:9] == [
        '-.epoch_9.4711.pth', '+epoch_1.pth', pointer, '+epoch_2.pth', pointer,
        '-epoch_1.pth', '+epoch_3.pth', pointer, '-epoch_2.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path /
                                                             'epoch_3.pth')
    [published] = tmp_path.glob('epoch_3-????????.pth')
    content = load_weights(str(published))
    assert {*content} == {'meta', 'state_dict'}
    # A run that was killed before it removed the old one does so on resuming.
    ids = load_weights(
        str(tmp_path /
            'epoch_3.pth'))['message_hub']['runtime_info']['keep_ckpt_ids']
    assert ids == [2, 3]
    write(tmp_path, 'epoch_2.pth')
    cfg.resume = True
    Runner.from_cfg(cfg).train()
    assert [p.name for p in tmp_path.glob('epoch_?.pth')] == ['epoch_3.pth']


def test_the_best_one_is_replaced_likewise(tmp_path, monkeypatch):
    runner = Runner.from_cfg(
        small_cfg(
            tmp_path, **{
                'default_hooks.checkpoint.save_best': 'accuracy',
                'default_hooks.checkpoint.rule': 'greater',
                'train_cfg.max_epochs': 1}))
    runner.train()
    done = order_of_writes(monkeypatch)
    [hook] = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
    for epoch, accuracy in ((1, 30.0), (2, 20.0), (3, 40.0), (3, 50.0)):
        runner.train_loop._epoch = epoch
        hook.after_val_epoch(runner, dict(accuracy=accuracy))
    names = [name for name in done if 'best' in name]
    first, third = (f'best_accuracy_epoch_{i}.pth' for i in (1, 3))
    assert names == [f'+{first}', f'+{third}', f'-{first}', f'+{third}']


def test_without_a_checkpoint_a_resumed_run_says_that_it_starts(
        tmp_path, capsys):
    cfg = small_cfg(tmp_path, **{'train_cfg.max_epochs': 1, 'resume': True})
    Runner.from_cfg(cfg).train()
    assert 'no checkpoint in' in capsys.readouterr().out
    assert (tmp_path / 'epoch_1.pth').exists()


def test_a_run_whose_checkpoints_are_all_broken_does_not_start_again(tmp_path):
    (tmp_path / 'epoch_1.pth').write_text('broken')
    cfg = small_cfg(tmp_path, resume=True)
    with pytest.raises(ValueError, match='None of the 1 checkpoints'):
        Runner.from_cfg(cfg).train()
    assert (tmp_path / 'epoch_1.pth').read_text() == 'broken'
