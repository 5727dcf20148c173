# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""No file that is read executes code, whoever wrote it."""
import builtins
import os
import pickle
import resource
import shutil
import time
from importlib.util import find_spec

import cv2
import mmengine
import numpy as np
import pytest
import torch
import yaml
from bad_inputs.harness import ROOT, check, main_of, run
from hostile_files import Calls, hostile
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import _safe_torch_load
from small_run import small_cfg

from us3l_mm.fileio import CodeInFileError, load_weights, trust_pickle
from us3l_mm.registry import MODELS

# What is read because nothing of it counts: the state of a dtype, which could
# declare numbers to be pointers, and functions in a history.
HARMLESS = ['dtype of pointers', 'history with functions']
FILES = sorted(hostile('/nowhere'))
# Those of which PyTorch says that it would have to call something.
CODE = [
    '__import__', 'a stack of two values', 'an attribute of a tensor dict',
    'array of objects', 'array of texts', 'as a key', 'as a state', 'compile',
    'dtype of records', 'eval', 'exec', 'getattr chain',
    'getattr chain in a checkpoint', 'getattr chain, old format',
    'getattr of a history', 'in a list', 'in an optimizer', 'in meta',
    'object', 'open', 'open, old format', 'os.system', 'persistent id',
    'pickle', 'subprocess']
DIGITS = ROOT / 'configs/us3l/us3l_resnet18_demo_digits.py'
MASK_RCNN = ROOT / 'configs/us3l/detection/mask-rcnn_demo_digit-scenes.py'

needs_detection = pytest.mark.skipif(not find_spec('mmdet'),
                                     reason='MMDetection is not installed')


@pytest.mark.parametrize('name', FILES)
def test_a_hostile_file_changes_nothing(tmp_path, name):
    trace, file = tmp_path / 'trace', tmp_path / 'weights.pth'
    file.write_bytes(hostile(str(trace))[name])
    begin, memory = time.perf_counter(), peak()
    own = {**vars(builtins)}
    if name in HARMLESS:
        load_weights(str(file))
    else:
        with pytest.raises(ValueError, match='weights.pth ') as error:
            load_weights(str(file))
        assert isinstance(error.value, CodeInFileError) == (name in CODE)
    assert time.perf_counter() - begin < 5
    assert peak() - memory < 2e8
    assert os.listdir(tmp_path) == ['weights.pth']
    assert vars(builtins) == own
    # The state of whole types, which some of the files try to change.
    assert np.dtype('f8').flags == 0 and np.dtype('f8').byteorder == '='
    assert HistoryBuffer._statistics_methods.get(
        'mean', HistoryBuffer.mean) is HistoryBuffer.mean


def peak() -> float:
    """The most memory that this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def files(tmp_path):
    """A checkpoint that reaches exec, and the file that exec would make."""
    trace, file = tmp_path / 'trace', tmp_path / 'run/epoch_1.pth'
    file.parent.mkdir()
    file.write_bytes(hostile(str(trace))['getattr chain in a checkpoint'])
    return file, trace


def test_the_chain_does_execute_where_nothing_prevents_it(files):
    file, trace = files
    torch.load(file, weights_only=False)
    assert trace.exists()


def test_mmengine_alone_would_execute_it(files):
    """So that the tests below show something."""
    file, trace = files
    _safe_torch_load(str(file), map_location='cpu')
    assert trace.exists()


def test_a_process_that_trusts_files_reads_it(files):
    file, trace = files
    trust_pickle()
    weights = CheckpointLoader.load_checkpoint(str(file), logger='silent')
    assert trace.exists() and 'backbone.conv1.weight' in weights['state_dict']


def init_cfg(file) -> dict:
    return dict(type='Pretrained', checkpoint=str(file))


@pytest.mark.parametrize(
    'changes', [
        lambda file: {
            'model.init_cfg': init_cfg(file)}, lambda file: {
                'model.neck.init_cfg': init_cfg(file)}, lambda file: {
                    'model.neck.init_cfg': [init_cfg(file)]}, lambda file: {
                        'model.backbone.init_cfg': init_cfg(file)},
        lambda file: {
            'model.backbone.init_cfg': [
                dict(type='Kaiming', layer='Conv2d'),
                init_cfg(file)]}, lambda file: {
                    'model.head.predictor.init_cfg': init_cfg(file)},
        lambda file: {
            'load_from': str(file)}, lambda file: {
                'load_from': str(file),
                'resume': True}, lambda file: {
                    'resume': True}],
    ids=[
        'model', 'neck', 'list in neck', 'backbone', 'list in backbone',
        'predictor', 'load_from', 'resume FILE', 'resume'])
@pytest.mark.parametrize('by_tool', [True, False])
def test_no_run_executes_a_file(files, tmp_path, capsys, changes, by_tool):
    file, trace = files
    cfg = small_cfg(file.parent, **changes(file))
    if by_tool:
        config = tmp_path / 'config.py'
        config.write_text(cfg.pretty_text)
        done = run(main_of('train'), [config], tmp_path, capsys)
        assert done.code != 0 and 'Traceback' not in done.output
        assert 'execute code' in done.output, done.output
        assert '--trust-pickle' in done.output
    else:  # as in MMPretrain's tool
        with pytest.raises(
                ValueError, match='epoch_1.pth was not read: that '
                'would execute code'):
            Runner.from_cfg(cfg).train()
    assert not trace.exists()


@pytest.mark.parametrize('tool, argv', [
    ('slice_checkpoint', ['CKPT', 'out.pth', '--width', '0.5']),
    ('evaluate_widths', [DIGITS, 'CKPT']),
    ('test', [
        ROOT / 'configs/us3l/benchmarks/'
        'linear_resnet18_4xb128-steplr-100e_cifar10.py', 'CKPT']),
    ('model_converters/plain_to_ours', ['CKPT', 'out.pth']),
    ('model_converters/slimclr_to_ours', ['CKPT', 'out.pth']),
    ('model_converters/us3l_to_ours', ['CKPT', 'out.pth']),
    ('model_converters/us3l_to_ours', [
        'GOOD', 'out.pth', '--statistics', '0.5=CKPT'])])
def test_no_tool_executes_a_file(files, tmp_path, capsys, tool, argv):
    file, trace = files
    good = tmp_path / 'good.pth'
    torch.save(dict(state_dict={'fc.0.weight': torch.ones(1)}), good)
    argv = [
        str(word).replace('CKPT', str(file)).replace('GOOD', str(good))
        for word in argv]
    done = run(main_of(tool), argv, tmp_path, capsys)
    check(done, 'epoch_1.pth was not read', 'execute code', '--trust-pickle')
    assert not trace.exists()


@needs_detection
@pytest.mark.parametrize('key', ['backbone', 'neck', 'rpn_head'])
def test_no_detector_executes_a_file(files, key):
    file, trace = files
    cfg = Config.fromfile(MASK_RCNN)
    cfg.merge_from_dict({f'model.{key}.init_cfg': init_cfg(file)})
    init_default_scope('mmdet')
    with pytest.raises(ValueError, match='would execute code'):
        MODELS.build(cfg.model).init_weights()
    assert not trace.exists()


@needs_detection
@pytest.mark.parametrize('tool, argv',
                         [('detect_image', [MASK_RCNN, 'CKPT', 'IMAGE']),
                          ('demo_detection', ['--checkpoint', 'CKPT'])])
def test_no_tool_of_detectors_executes_a_file(files, tmp_path, capsys, tool,
                                              argv):
    file, trace = files
    image = tmp_path / 'image.png'
    cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    argv = [{'CKPT': file, 'IMAGE': image}.get(word, word) for word in argv]
    done = run(main_of(tool), argv, tmp_path, capsys)
    assert done.code != 0 and 'Traceback' not in done.output
    assert 'execute code' in done.output, done.output
    assert not trace.exists()


@pytest.mark.parametrize('name', [
    'labels.pkl', 'labels.pickle', 'labels.yaml', 'labels.yml'])
def test_no_annotation_file_executes(tmp_path, name):
    trace, file = tmp_path / 'trace', tmp_path / name
    call = Calls(open, str(trace), 'w')
    for content in (pickle.dumps(call), yaml.dump(call).encode()):
        file.write_bytes(content)
        with pytest.raises(ValueError, match='was not read|decode byte'):
            mmengine.load(str(file))
        assert not trace.exists()


def test_annotations_of_plain_data_are_read(tmp_path):
    content = dict(a=[1, 2.5, 'x'], b=(1, 2))
    for name in ('a.yaml', 'a.pkl'):
        mmengine.dump(content, str(tmp_path / name))
    assert mmengine.load(str(tmp_path / 'a.yaml')) == content
    trust_pickle()
    assert mmengine.load(str(tmp_path / 'a.pkl')) == content


@pytest.mark.parametrize('url', [
    'https://example.org/resnet18.pth', 'torchvision://resnet18',
    'open-mmlab://detectron2/resnet50_caffe', 'mmcls://resnet18'])
def test_what_is_downloaded_is_read_in_the_same_way(files, tmp_path,
                                                    monkeypatch, url):
    file, trace = files
    asked = []

    def download(url, path, hash_prefix):
        asked.append((url, hash_prefix))
        shutil.copy(file, path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    torch_home = tmp_path / 'hub'
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(torch_home))
    with pytest.raises(ValueError, match='would execute code'):
        CheckpointLoader.load_checkpoint(url, logger='silent')
    [(source, digest)] = asked
    assert source.startswith('https://') and not trace.exists()
    assert digest is None or f'-{digest}.' in source
    with pytest.raises(ValueError, match='would execute code'):  # the copy
        CheckpointLoader.load_checkpoint(url, logger='silent')
    assert len(asked) == 1


def test_a_url_that_leads_nowhere(tmp_path, monkeypatch):

    def fail(url, path, hash_prefix):
        raise RuntimeError('invalid hash value')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(
            OSError, match='a.pth was not downloaded: invalid hash '
            '.*name a local file'):
        CheckpointLoader.load_checkpoint('https://example.org/a.pth',
                                         logger='silent')
    with pytest.raises(ValueError, match='Did you mean resnet50'):
        CheckpointLoader.load_checkpoint('torchvision://resnet5O',
                                         logger='silent')
    with pytest.raises(ValueError, match='download it'):
        CheckpointLoader.load_checkpoint('pavi://x', logger='silent')
