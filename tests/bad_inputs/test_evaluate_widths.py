# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/evaluate_widths.py."""
import pytest
import torch
from mmengine.registry import init_default_scope
from small_run import small_cfg

from us3l_mm.registry import MODELS

from .harness import check, main_of, run

SMALL = ['tiny.py', 'tiny.pth']
# What is named, besides a config and a checkpoint that fit.
FLAGS = [
    (['--widths', '0.1'], 'Width 0.1', '[0.25, 1]'),
    (['--widths', '1.5'], '1.5', '(0, 1]'),
    (['--widths', 'wide'], "'wide'", '0.5'),
    (['--widths', 'gated'], 'gated', 'SlimmableResNet_CIFAR'),
    (['--widths'], '--widths', 'expected at least one argument'),
    (['--widths', '1', '--num-widths', '3'], '--num-widths', '--widths'),
    (['--num-widths', '0'], 'at least 1', '0'),
    (['--num-widths', '-3'], 'at least 1', '-3'),
    (['--num-widths', 'all'], "'all'", 'int'),
    (['--k', '0'], 'k=0', 'from 1 to the 48'),
    (['--k', '49'], 'k=49', 'from 1 to the 48'),
    (['--k', '2.5'], "'2.5'", 'int'),
    (['--linear', '--k', '5'], '--k', 'no --knn'),
    (['--linear', '--metric', 'euclidean'], '--metric', 'no --knn'),
    (['--metric', 'manhattan'], "'manhattan'", 'euclidean'),
    (['--linear-runs', '1'], '--linear-runs', '2 or more', '1'),
    (['--linear-runs', 'five'], "'five'", 'int'),
    (['--budgets',
      '0.3'], 'SlimmableResNet_CIFAR has no gates', 'GatedResNet'),
    (['--budgets', 'low'], "'low'", 'float'),
    (['--num-images', '1'], 'num_images=1', 'at least two'),
    (['--num-images', '-5'], 'num_images=-5', 'at least two'),
    (['--batch-size', '0'], 'batch_size=0', 'positive integer'),
    (['--batch-size', '-4'], 'batch_size=-4', 'positive integer'),
    (['--batch-size', 'big'], "'big'", 'int'),
    (['--device', 'gpu'], "'gpu' is not available", 'gpu'),
    (['--device', 'cuda:77'], "'cuda:77' is not available", 'cuda'),
    (['--calibrate-on', 'test'], "'test'", 'augmented'),
    (['--running-average', '1.5'], '1.5', '(0, 1]'),
    (['--launcher', 'ssh'], "'ssh'", 'pytorch'),
    (['--launcher', 'mpi', '--device', 'cpu'], 'OMPI_COMM_WORLD', 'mpirun'),
    (['--compare', 'absent.json'], 'absent.json', 'evaluate_widths.py writes'),
    (['--compare', 'tiny.py'], 'tiny.py', 'not a report'),
    (['--save-checkpoint', 'tiny.pth'], 'tiny.pth', 'name another file'),
    (['--save-checkpoint', '.'], 'not an ordinary file', 'name a file'),
    (['--save-checkpoint', 'tiny.py/x.pth'], 'tiny.py/x.pth', 'not a folder'),
    (['--out', 'tiny.py'], 'tiny.py', 'not a folder'),
    (['--wdiths', '1.0'], '--wdiths', 'usage'),
    (['--cfg-options',
      'model.backbone.depth'], 'KEY=VALUE', 'model.backbone.depth'),
    (['--cfg-options',
      'modle.backbone.depth=34'], 'modle', 'Did you mean model'),
    (['--cfg-options', 'train_cfg.max_epochs=3'], 'train_cfg', 'model'),
    (['--cfg-options', 'work_dir=there'], 'work_dir', 'model'),
    (['--cfg-options',
      'data_root=there'], 'has no data_root', 'dataset.data_root'),
    (['--cfg-options', 'model.backbone.depth=34'], 'does not fit', 'depth=34'),
    (['--cfg-options', 'model.backbone.depth=19'], '19', '18'),
    (['--cfg-options', 'model.backbone.type=us3l_mm.SlimableResNet'],
     'SlimableResNet', 'registry'),
    (['--cfg-options', 'model.backbone.colour=red'], 'colour', 'argument'),
    (['--cfg-options',
      'knn_bank_dataloader.dataset.split=all'], "'all'", 'train'),
    (['--cfg-options',
      'knn_bank_dataloader.dataset.num_images=0'], 'num_images', 'at least 1'),
    (['--cfg-options',
      'knn_bank_dataloader.dataset.type=Digits'], 'Digits', 'registry'),
    (['--cfg-options', 'knn_bank_dataloader.batch_size=two'], 'two', 'batch'),
]
# Other files.
FILES = [
    ([], 'checkpoint', 'required'),
    (['absent.pth'], 'absent.pth', 'no checkpoint'),
    (['tiny.py', 'absent.pth'], 'absent.pth', 'no checkpoint'),
    (['tiyn.py', 'tiny.pth'], 'tiyn.py', 'Did you mean'),
    (['tiny.pth', 'tiny.py'], 'tiny.pth', 'The config comes first'),
    (['tiny.py', '.'], 'no checkpoint', '.'),
    (['tiny.py', 'empty.pth'], 'empty.pth', 'empty'),
    (['tiny.py', 'text.pth'], 'text.pth', 'not a PyTorch checkpoint'),
    (['tiny.py', 'short.pth'], 'short.pth', 'not copied completely'),
    (['tiny.py', 'nothing.pth'], 'nothing.pth', 'no weights'),
    (['tiny.py', 'nan.pth'], 'nan.pth', 'finite'),
    (['tiny.py', 'integers.pth'], 'integers.pth', 'int'),
    (['tiny.py', 'headless.pth'], 'no weights of', 'Give a checkpoint'),
    (['alone.pth'], 'alone.pth', 'evaluate_widths.py CONFIG'),
    (['syntax.py', 'tiny.pth'], 'syntax.py', 'line 1'),
    (['base.py', 'tiny.pth'], 'absent.py', 'base'),
    (['model.py', 'tiny.pth'], 'model.py', 'no model'),
    (['unlabelled.py', 'tiny.pth'], 'no knn_bank_dataloader', 'Add one'),
    (['tiny.py', 'tiny.pth', 'more.pth'], 'more.pth', 'unrecognized'), ]


@pytest.fixture(scope='module')
def main():
    return main_of('evaluate_widths')


@pytest.fixture(scope='module')
def content():
    init_default_scope('mmpretrain')
    return MODELS.build(small_cfg('unused').model).state_dict()


def labelled(split, num_images):
    return dict(
        batch_size=16, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
            type='us3l_mm.RenderedDigits', split=split, num_images=num_images,
            pipeline=[
                dict(type='Resize', scale=(16, 16)),
                dict(type='PackInputs')]))


@pytest.fixture
def folder(tmp_path, content):
    """Good files, and bad ones."""
    cfg = small_cfg('unused')
    cfg.dump(tmp_path / 'unlabelled.py')
    cfg.knn_bank_dataloader = labelled('train', 48)
    cfg.knn_query_dataloader = labelled('test', 24)
    cfg.dump(tmp_path / 'tiny.py')
    (tmp_path / 'syntax.py').write_text('model = dict(\n')
    (tmp_path / 'base.py').write_text("_base_ = 'absent.py'\n")
    (tmp_path / 'model.py'
     ).write_text('knn_bank_dataloader = knn_query_dataloader = dict()\n')
    weight = 'backbone.conv1.weight'
    for name, changes in {
            'tiny': {},
            'nan': {
                weight: content[weight] * float('nan')},
            'integers': {
                weight: content[weight].int()}}.items():
        torch.save(dict(state_dict={
            **content,
            **changes}), tmp_path / f'{name}.pth')
    torch.save(
        dict(state_dict={
            k: v for k, v in content.items()
            if 'backbone' not in k}), tmp_path / 'headless.pth')
    torch.save(dict(epoch=3), tmp_path / 'nothing.pth')
    (tmp_path / 'empty.pth').touch()
    (tmp_path / 'text.pth').write_text('these are no weights')
    whole = (tmp_path / 'tiny.pth').read_bytes()
    (tmp_path / 'alone.pth').write_bytes(whole)
    (tmp_path / 'short.pth').write_bytes(whole[:len(whole) // 2])
    return tmp_path


@pytest.mark.parametrize('argv, needles', [
    *((SMALL + flags, needles)
      for flags, *needles in FLAGS), *((files, needles)
                                       for files, *needles in FILES)],
                         ids=lambda value: ' '.join(map(str, value))[:60])
def test_bad_input(main, folder, capsys, argv, needles):
    check(run(main, argv, folder, capsys), *needles)
