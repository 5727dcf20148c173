# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""tools/evaluate_widths.py from end to end, on a tiny random checkpoint."""
import csv
import importlib.util
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lives import launch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from small_run import small_cfg

from us3l_mm.evaluation import load_backbone, spool, widths
from us3l_mm.evaluation.loading import load_source, untrained_network
from us3l_mm.fileio import load_weights
from us3l_mm.models import at_width
from us3l_mm.registry import MODELS

TOOL = Path(__file__).parent.parent / 'tools' / 'evaluate_widths.py'
spec = importlib.util.spec_from_file_location('evaluate_widths', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def labelled(split, num_images):
    return dict(
        batch_size=16, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
            type='us3l_mm.RenderedDigits', split=split, num_images=num_images,
            pipeline=[
                dict(type='Resize', scale=(16, 16)),
                dict(type='PackInputs')]))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A config and a checkpoint with random weights."""
    folder = tmp_path_factory.mktemp('files')
    cfg = small_cfg('unused')
    cfg.knn_bank_dataloader = labelled('train', 48)
    cfg.knn_query_dataloader = labelled('test', 24)
    cfg.dump(folder / 'tiny.py')
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    algorithm = MODELS.build(cfg.model)
    torch.save(dict(state_dict=algorithm.state_dict(), meta=dict(epoch=1)),
               folder / 'tiny.pth')
    return folder


def evaluate(files, out, *flags, checkpoint='tiny.pth', config='tiny.py'):
    tool.main([
        str(files / config),
        str(files / checkpoint), '--out',
        str(out), '--device', 'cpu', *flags])


def report_of(out):
    return json.loads((out / 'widths.json').read_text())


def test_a_table_json_csv_and_picture_of_every_width(files, tmp_path, capsys):
    saved = tmp_path / 'calibrated.pth'
    evaluate(files, tmp_path, '--widths', '1.0', '0.5', '--knn', '--linear',
             '--latency', '--baselines', '--k', '3', '--save-checkpoint',
             str(saved))
    report = report_of(tmp_path)
    assert [row['width'] for row in report['rows']] == [1.0, 0.5]
    assert [row['subnet'] for row in report['rows']] == ['w1.00', 'w0.50']
    assert [row['channels'] for row in report['rows']] == [32, 16]
    assert [row['params'] for row in report['rows']] == [42896, 10952]
    for row in report['rows']:
        assert all(value is not None for value in row.values())
        assert 0 <= row['knn'] <= 100 and 0 <= row['linear'] <= 100
    assert 0 < report['chance'] <= 100 and 0 <= report['raw_pixels'] <= 100
    with open(tmp_path / 'widths.csv') as file:
        assert [row['width'] for row in csv.DictReader(file)] == ['1.0', '0.5']
    out = capsys.readouterr().out
    for text in ('tiny', '10,952', 'raw pixels', 'chance', 'widths_knn.png',
                 'widths_linear.png', 'widths.json', 'widths.csv'):
        assert text in out
    assert (tmp_path / 'widths_knn.png').read_bytes().startswith(b'\x89PNG')
    # The statistics are in the checkpoint, and all else is as before.
    before = load_weights(str(files / 'tiny.pth'))
    after = load_weights(str(saved))
    assert after['meta'] == before['meta']
    for name, value in before['state_dict'].items():
        if not name.startswith('backbone.') or name.endswith('weight'):
            assert torch.equal(after['state_dict'][name], value), name
    network = load_backbone(after, Config.fromfile(files / 'tiny.py'))
    with torch.no_grad(), at_width(network, 0.5):
        assert network(torch.rand(1, 3, 16, 16))[-1].shape[1] == 16


def test_a_second_run_computes_nothing(files, tmp_path, monkeypatch, capsys):
    evaluate(files, tmp_path, '--num-widths', '2')
    first = report_of(tmp_path)

    def work(*_, **__):
        raise AssertionError('this was done already')

    for name in ('calibrate', 'encode', 'knn_accuracy'):
        monkeypatch.setattr(widths, name, work)
    evaluate(files, tmp_path, '--num-widths', '2')
    assert report_of(tmp_path) == first
    assert 'Continuing with the results' in capsys.readouterr().out


def test_an_interrupted_run_goes_on_width_by_width(files, tmp_path,
                                                   monkeypatch):
    evaluate(files, tmp_path / 'whole', '--num-widths', '4')
    calls, calibrated = [], []
    knn_accuracy, calibrate = widths.knn_accuracy, widths.calibrate

    def interrupted(*data, **more):
        calls.append(data)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return knn_accuracy(*data, **more)

    def watched(network, batches, subnets, *arguments, **more):
        calibrated.append([subnet.width for subnet in subnets])
        return calibrate(network, batches, subnets, *arguments, **more)

    monkeypatch.setattr(widths, 'knn_accuracy', interrupted)
    monkeypatch.setattr(widths, 'calibrate', watched)
    with pytest.raises(SystemExit, match='Interrupted.*goes on from there'):
        evaluate(files, tmp_path / 'parts', '--num-widths', '4')
    found = [row['knn'] for row in report_of(tmp_path / 'parts')['rows']]
    assert [value is None for value in found] == [False, False, True, True]
    evaluate(files, tmp_path / 'parts', '--num-widths', '4')
    assert calibrated == [[1.0, 0.75, 0.5, 0.25], [0.5, 0.25]]
    assert report_of(tmp_path / 'parts') == report_of(tmp_path / 'whole')


def test_other_settings_do_not_mix_with_earlier_results(
        files, tmp_path, capsys):
    evaluate(files, tmp_path, '--widths', '0.5')
    evaluate(files, tmp_path, '--widths', '0.5', '--k', '3')
    assert 'was measured with another k' in capsys.readouterr().out
    assert report_of(tmp_path)['settings']['k'] == 3
    evaluate(files, tmp_path, '--widths', '0.5', '--k', '3', '--calibrate-on',
             'augmented')
    assert 'another batch_size, calibrate_on, data' in capsys.readouterr().out


def test_statistics_of_augmented_images_are_the_same_every_time(
        files, tmp_path):
    saved = [tmp_path / f'{i}.pth' for i in range(2)]
    for i, path in enumerate(saved):
        evaluate(files, tmp_path / str(i), '--widths', '0.5', '--calibrate-on',
                 'augmented', '--save-checkpoint', str(path))
    first, second = (load_weights(str(path))['state_dict'] for path in saved)
    assert all(torch.equal(first[name], second[name]) for name in first)


def without_config(path, checkpoint, *flags):
    tool.main([
        str(checkpoint), '--out',
        str(path), '--device', 'cpu', '--widths', '0.5', *flags])


def test_the_config_of_the_run_needs_no_name(files, tmp_path, capsys):
    content = torch.load(files / 'tiny.pth')
    config = Config.fromfile(files / 'tiny.py')
    content['meta'] = dict(cfg=config.pretty_text)
    torch.save(content, tmp_path / 'inside.pth')
    without_config(tmp_path / 'a', tmp_path / 'inside.pth')
    assert f'Config: that of {tmp_path}/inside.pth' in capsys.readouterr().out
    run = tmp_path / 'run'
    run.mkdir()
    for name in ('tiny.py', 'tiny.pth'):
        (run / name).write_bytes((files / name).read_bytes())
    without_config(tmp_path / 'b', run / 'tiny.pth')
    assert f'Config: that of {run}/tiny.py' in capsys.readouterr().out
    evaluate(files, tmp_path / 'c', '--widths', '0.5')
    first, second, third = (report_of(tmp_path / name)['rows']
                            for name in 'abc')
    assert first == second == third
    # Options change this config as well.
    without_config(tmp_path / 'b', run / 'tiny.pth', '--cfg-options',
                   'knn_bank_dataloader.dataset.num_images=24')
    assert 'measured with another data' in capsys.readouterr().out
    (run / 'other.py').touch()
    with pytest.raises(SystemExit, match='Name it: evaluate_widths.py CONFIG'):
        without_config(tmp_path / 'd', run / 'tiny.pth')


def test_flags_may_stand_between_the_files(files, tmp_path):
    args = tool.parse_args(['a.py', '--device', 'cpu', 'b.pth', '--linear'])
    assert (args.config, args.checkpoint, args.knn) == ('a.py', 'b.pth', False)


def test_data_root_moves_bank_and_queries(files, tmp_path):
    folder = tmp_path / 'my images'
    for index in range(12):
        path = folder / f'{"ab"[index % 2]}/{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    config = Config.fromfile(files / 'tiny.py')
    config.data_root = 'data/absent'
    for key, split in (('bank', 'train'), ('query', 'val')):
        config[f'knn_{key}_dataloader'].dataset = dict(
            type='us3l_mm.ImageFolder', data_root=config.data_root,
            split=split, val_share=0.5, test_mode=True, pipeline=[
                dict(type='us3l_mm.LoadImage'),
                dict(type='PackInputs')])
    config.dump(files / 'folder.py')
    with pytest.raises(SystemExit, match="no folder.*'data/absent'"):
        evaluate(files, tmp_path / 'out', config='folder.py')
    evaluate(files, tmp_path / 'out', '--widths', '0.5', '--k', '3',
             '--cfg-options', f'data_root={folder}', config='folder.py')
    report = report_of(tmp_path / 'out')
    assert report['overlap'] == 0 and report['chance'] == 50


def test_several_runs_in_one_picture(files, tmp_path):
    evaluate(files, tmp_path / 'a', '--widths', '0.5', '--name', 'alone')
    evaluate(files, tmp_path / 'b', '--num-widths', '2', '--compare',
             str(tmp_path / 'a' / 'widths.json'))
    assert report_of(tmp_path / 'a')['name'] == 'alone'
    assert (tmp_path / 'b' / 'widths_knn.png').exists()


class Executed:
    """A pickle that would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path, )


def write_bad_checkpoints(files):
    (files / 'text.pth').write_text('these are no weights')
    content = (files / 'tiny.pth').read_bytes()
    (files / 'short.pth').write_bytes(content[:len(content) // 2])
    torch.save(dict(state_dict={}, meta=Executed(str(files / 'executed'))),
               files / 'code.pth')
    with open(files / 'bare.pth', 'wb') as file:
        pickle.dump(Executed(str(files / 'executed')), file)
    init_default_scope('mmpretrain')
    deeper = small_cfg('unused').model
    deeper.backbone.depth = 34
    torch.save(dict(state_dict=MODELS.build(deeper).state_dict()),
               files / 'deeper.pth')


@pytest.mark.parametrize('checkpoint, message', [
    ('absent.pth', 'There is no checkpoint'),
    ('text.pth', 'not a PyTorch checkpoint'),
    ('short.pth', 'not copied completely'),
    ('code.pth', 'would execute code'),
    ('bare.pth', 'would execute code|not copied completely'),
    ('deeper.pth', r'does not fit this SlimmableResNet_CIFAR\(depth=18'), ])
def test_bad_checkpoints_are_refused_and_not_executed(files, tmp_path,
                                                      checkpoint, message):
    write_bad_checkpoints(files)
    with pytest.raises(SystemExit, match=message):
        evaluate(files, tmp_path, checkpoint=checkpoint)
    assert not (files / 'executed').exists()
    assert not list(tmp_path.iterdir())


def test_queries_in_the_bank_do_not_find_themselves(files, tmp_path, capsys):
    cfg = Config.fromfile(files / 'tiny.py')
    cfg.knn_query_dataloader = cfg.knn_bank_dataloader
    cfg.dump(files / 'same.py')
    evaluate(files, tmp_path / 'same', '--widths', '0.5', '--k', '1',
             '--baselines', config='same.py')
    report = report_of(tmp_path / 'same')
    assert report['overlap'] == 48
    assert max(report['raw_pixels'], report['rows'][0]['knn'],
               report['rows'][0]['untrained_knn']) < 90
    out = ' '.join(capsys.readouterr().out.split())
    assert '48 queries are also in the bank: each was left out of its' in out
    with pytest.raises(SystemExit, match="dataset.split='train'"):
        evaluate(files, tmp_path / 'linear', '--widths', '0.5', '--linear',
                 config='same.py')


@pytest.mark.parametrize('flags, message', [
    (['--widths', '0.5', '0.1'], 'Width 0.1 is outside the range'),
    (['--num-widths', '0'], 'at least 1, got 0'),
    (['--k', '49'], 'from 1 to the 48 images of knn_bank_dataloader, got '
     'k=49'),
    (['--num-images', '1'], 'at least two images, got num_images=1'),
    (['--device', 'cuda:77'], "device 'cuda:77' is not available"),
    (['--compare', 'absent.json'], 'There is no report absent.json'),
    (['--compare', __file__], 'is not a report of tools/evaluate_widths.py'),
    (['--save-checkpoint', '/dev/null/x.pth'], 'cannot be written'), ])
def test_bad_flags_are_refused_before_any_work(files, tmp_path, monkeypatch,
                                               flags, message):
    monkeypatch.setattr(widths, 'encode', None)
    with pytest.raises(SystemExit, match=message):
        evaluate(files, tmp_path, *flags)
    assert not list(tmp_path.iterdir())


def test_features_that_the_disk_has_no_room_for_are_refused_before_any_work(
        files, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, 'MAX_IN_MEMORY', 0)
    monkeypatch.setattr('shutil.disk_usage', lambda _: SimpleNamespace(free=1))
    monkeypatch.setattr(widths, 'calibrate', None)
    with pytest.raises(SystemExit, match='features of 48 images.*TMPDIR'):
        evaluate(files, tmp_path, '--widths', '0.5')
    assert not list(tmp_path.iterdir())


def test_a_config_without_labelled_images_shows_what_to_write(files, tmp_path):
    small_cfg('unused').dump(files / 'unlabelled.py')
    with pytest.raises(
            SystemExit, match=r'unlabelled.py has no '
            r'knn_bank_dataloader(.|\n)*sampler=dict'):
        evaluate(files, tmp_path, config='unlabelled.py')


def test_single_views_are_needed(files, tmp_path):
    cfg = small_cfg('unused')
    cfg.train_dataloader.dataset.pipeline.pop(0)
    cfg.knn_bank_dataloader = labelled('train', 48)
    cfg.knn_query_dataloader = cfg.train_dataloader
    cfg.dump(files / 'views.py')
    with pytest.raises(SystemExit, match='got 2 views of each'):
        evaluate(files, tmp_path, config='views.py')


@pytest.mark.parametrize('channels_last', [False, True])
def test_networks_are_in_the_memory_layout_of_training(files, channels_last):
    config = Config.fromfile(files / 'tiny.py')
    config.model.channels_last = channels_last
    content = load_weights(str(files / 'tiny.pth'))
    for network in (load_source(content, config).backbone,
                    untrained_network(config)):
        weight = network.layer2[0].conv1.weight
        assert channels_last == weight.is_contiguous(
            memory_format=torch.channels_last)


def test_the_preprocessor_is_that_of_training(files):
    """MMEngine's Runner takes it from the top of a config as well."""
    config = Config.fromfile(files / 'tiny.py')
    config.model.pop('data_preprocessor')
    config.data_preprocessor = dict(type='SelfSupDataPreprocessor',
                                    mean=[10.0] * 3, std=[2.0] * 3)
    preprocessor = load_source(str(files / 'tiny.pth'), config).preprocessor
    batch = dict(inputs=torch.full((1, 3, 2, 2), 14), data_samples=None)
    assert torch.equal(
        preprocessor(batch)['inputs'], torch.full((1, 3, 2, 2), 2.0))


@pytest.mark.ddp
def test_two_processes_find_what_one_does(files, tmp_path):
    flags = [
        '--widths', '1.0', '0.5', '--linear', '--knn', '--baselines',
        '--calibrate-on', 'plain', '--device', 'cpu', '--batch-size', '7',
        '--num-images', '36', '--save-checkpoint']
    said = launch(tmp_path, TOOL, files / 'tiny.py', files / 'tiny.pth',
                  *flags, tmp_path / 'two.pth', '--out', tmp_path / 'two')
    assert said.count('raw pixels') == 1
    assert 'raw pixels' not in (tmp_path / 'rank-1.log').read_text()
    evaluate(files, tmp_path / 'one', *flags, str(tmp_path / 'one.pth'))
    two, one = report_of(tmp_path / 'two'), report_of(tmp_path / 'one')
    assert all(value is not None for name, value in one['rows'][0].items()
               if name != 'latency_ms')
    assert two == one
    one, two = (load_weights(str(tmp_path / f'{name}.pth'))['state_dict']
                for name in ('one', 'two'))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)
