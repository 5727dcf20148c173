# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of the benchmarks."""
import pytest

from .harness import ROOT, check, main_of, run

TOOLS = ('augmentation', 'calibration', 'communication', 'gated_latency',
         'slices', 'throughput', 'train_step', 'vit_widths')
CIFAR = ROOT / 'configs/us3l/us3l_resnet18_4xb128-coslr-400e_cifar10.py'
DIGITS = CIFAR.parent / 'us3l_resnet18_demo_digits.py'
VIT = CIFAR.parent / 'us3l_vit-tiny_8xb64-coslr-300e_cifar10.py'
CASES = [
    *((tool, words, *needles) for tool in TOOLS for words, *needles in (
        (['--rounds', '0'], 'at least 1', "'0'"),
        (['--rounds', 'many'], 'at least 1', "'many'"),
        (['--batch-size', '-4'], 'at least', "'-4'"),
        (['--device', 'gpu'], "'gpu' is not available"),
        (['--json', '.'], '. is not an ordinary file'),
        (['--jsno', 'x.json'], '--jsno'),
    )),
    ('augmentation', ['--source-size', '0'], 'at least 1', "'0'"),
    ('augmentation', ['--configs', f'{CIFAR}x'], 'Did you mean', CIFAR.name),
    ('augmentation', [
        '--configs',
        CIFAR.with_name('us3l_resnet18_demo_digits.py')],
     'begins with RenderDigit', 'RandomResizedCrop'),
    ('augmentation', [
        '--configs', CIFAR.parent /
        'benchmarks/linear_resnet18_4xb128-steplr-100e_cifar10.py'],
     'no MultiView', 'pre-training'),
    ('calibration', ['--num-images', '1'], 'at least 2', "'1'"),
    ('calibration', ['--num-workers', '-1'], 'at least 0', "'-1'"),
    ('calibration', ['--image-size', '8'], 'at least 32', "'8'"),
    ('calibration', ['--depth', '19'], 'choose from', '19', '18'),
    ('communication', ['--processes', '0'], 'at least 1', "'0'"),
    ('communication', ['--device', 'cpu:0'], 'cpu:0', 'NCCL'),
    ('communication', ['--modes', 'joint'], "'joint'", 'sequential'),
    ('communication', ['--widths', '0.1'], 'Width 0.1', 'range'),
    ('communication', ['--config', 'absent.py'], 'absent.py', 'Configs are'),
    ('gated_latency', ['--densities', '0'], "'0'", 'in (0, 1]'),
    ('gated_latency', ['--densities', 'half'], "'half'", 'a share of'),
    ('gated_latency', ['--depths', '19'], '19', 'choose from'),
    ('gated_latency', ['--image-sizes', '0'], "'0'", 'at least 1'),
    ('slices', ['--widths', '0.3'], '0.3', 'multiples of 1/8'),
    ('slices', ['--widths', '2'], '2', '(0, 1]'),
    ('slices', ['--widths', 'nan'], 'nan', 'a width such as 0.5'),
    ('throughput', ['--settings',
                    'fp8'], "'fp8' is no setting", 'channels-last'),
    ('throughput', ['--settings', 'amp+'], "'' is no setting", 'join with +'),
    ('throughput', ['--settings', 'amp', 'amp'], 'amp', 'name it once'),
    ('throughput', ['--synthetic', '4'], 'at least 8', "'4'"),
    ('throughput', ['--iterations', '0'], 'at least 1', "'0'"),
    ('throughput', ['--against', 'nobody'], 'nobody', 'lightly'),
    ('throughput', ['--synthetic', '--widths', '0.1'], 'Width 0.1', 'range'),
    ('throughput', ['--config', 'absent.py'], 'absent.py', 'Configs are'),
    ('throughput', ['--synthetic', '--config',
                    DIGITS], 'RenderedDigits', 'Leave it out'),
    ('throughput', [
        '--synthetic', '--batch-size', '2', '--cfg-options',
        'default_hooks.sampler=None'], 'sampler', 'pre-training'),
    ('throughput', [
        '--synthetic', '--batch-size', '2', '--config', VIT, '--against',
        'plain'], 'SlimmableViT', 'ResNet'),
    ('train_step', ['--image-size', '2.5'], 'at least 1', "'2.5'"),
    ('train_step', ['--widths', '0.1'], 'Width 0.1', 'range'),
    ('train_step', ['--config', f'{CIFAR}x'], 'Did you mean', CIFAR.name),
    ('train_step', ['--cfg-options',
                    'modle.backbone.depth=34'], 'modle', 'Did you mean model'),
    ('train_step', ['--cfg-options',
                    'train_cfg.max_epochs=1'], 'train_cfg', 'model'),
    ('train_step', ['--cfg-options', 'model.backbone.depth'], 'KEY=VALUE'),
    ('vit_widths', ['--arch', 'enormous'], 'enormous', 'tiny'),
    ('vit_widths', ['--slicing', 'output'], "'output'", 'embed'),
    ('vit_widths', ['--widths', 'wide'], "'wide'"), ]


@pytest.mark.parametrize('tool, words, needles', [(c[0], c[1], c[2:])
                                                  for c in CASES])
def test_bad_input(tool, words, needles, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/benchmarks')
    main = main_of(f'benchmarks/{tool}')
    check(run(main, words, tmp_path, capsys), *needles)
