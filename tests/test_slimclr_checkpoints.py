# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files of the authors' SlimCLR code, compared with what they compute."""
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from slimclr_files import WIDTHS, Norms, Probe, Theirs, run_mlp
from torch import nn

from us3l_mm.apis import load_backbone
from us3l_mm.export.architecture import stored_model
from us3l_mm.export.slimclr_checkpoints import (AUTHORS, ConvertedSlimCLR,
                                                from_slimclr)
from us3l_mm.models import Subnet, at
from us3l_mm.registry import MODELS

ROOT = Path(__file__).parent.parent
KEYS = Path(__file__).parent / 'data' / 'slimclr_keys'
METHODS = ['mocov2', 'mocov3', 'simclr']
EXACT = dict(rtol=0, atol=1e-12)


@pytest.fixture
def in_double():
    """Networks are built in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def images(size=24):
    return torch.rand(5, 3, size, size,
                      generator=torch.Generator().manual_seed(1))


def build(converted):
    """Our model, from what the checkpoint stores alone."""
    model = stored_model(converted.checkpoint({}))
    network = MODELS.build(
        dict(model, data_preprocessor=dict(mean=[120.] * 3, std=[60.] * 3)))
    network.load_state_dict(converted.weights, strict=True)
    return network


def tool(argv):
    path = ROOT / 'tools' / 'model_converters' / 'slimclr_to_ours.py'
    spec = importlib.util.spec_from_file_location('slimclr_to_ours', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(arg) for arg in argv])


@pytest.mark.parametrize('method', METHODS)
def test_the_network_of_these_tests_has_their_keys(method):
    """The specification lists them for ResNet-50, without repetitions."""
    hidden, out = dict(mocov2=(2048, 128), mocov3=(4096, 256),
                       simclr=(2048, 128))[method]
    network = Theirs(method, base=64, hidden=hidden, out=out, queue=256)
    own = {
        key: tuple(value.shape)
        for key, value in network.file('')['state_dict'].items()}
    listed = {}
    for line in (KEYS / f'{method}.txt').read_text().splitlines():
        key, shape = line.split(' ', 1)
        listed[key] = tuple(map(int, re.findall(r'\d+', shape)))
    assert listed == {key: own[key] for key in listed}
    # What is not listed: other blocks, other widths, counters, key encoders.
    rest = re.compile(r'(encoder_k|momentum_encoder)\.|features\.([1-9])|'
                      r'bn\.[1-3]\.|.*num_batches_tracked')
    assert not [key for key in own.keys() - listed if not rest.search(key)]
    # Our config is of the same algorithm, of which it fits every tensor.
    converted = from_slimclr(network.file())
    cfg = Config.fromfile(ROOT / 'configs/slimclr' / converted.config)
    init_default_scope('mmpretrain')
    cfg.model.head.queue_length = 256  # that of the list
    if method != 'mocov2':
        del cfg.model.head.queue_length
    algorithm = MODELS.build(cfg.model)
    assert {
        key: value.shape for key, value in converted.weights.items()} == {
            key: value.shape for key, value in algorithm.state_dict().items()}
    assert f'Config: configs/slimclr/{converted.config}.' in (
        converted.summary())
    [
        path
    ] = (ROOT /
         'configs/slimclr/benchmarks').glob(f'linear-all-widths-{method}_*.py')
    backbone = MODELS.build(Config.fromfile(path).model.backbone)
    assert backbone.state_dict().keys() == (
        algorithm.backbone.state_dict().keys())


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('options', [
    dict(depth=50),
    dict(depth=18, cifar=True, widths=[1.0, 0.5]),
    dict(depth=20, cifar=True, base=16, widths=[1.0, 0.75])], ids=str)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_all_parts_compute_the_same(method, options, training, in_double):
    theirs = Theirs(method, **options).train(training)
    converted = from_slimclr(theirs.file())
    assert converted.method == method
    assert converted.subnets == list(map(Subnet, theirs.widths))
    ours, x = build(converted).train(training), images(
        12 if theirs.student.cifar else 24)
    with torch.no_grad():
        for i, width in enumerate(theirs.widths):
            with at(ours, width):
                maps = ours.backbone(x)
                z, = ours.neck(maps)
                query, = ours.head.queries([z])
            torch.testing.assert_close(maps[-1], theirs.student.maps(x, i),
                                       **EXACT)
            expected = theirs.student.embed(x, i)
            torch.testing.assert_close(z, expected, **EXACT)
            if method == 'mocov3':
                expected = run_mlp(theirs.predictor, expected, i,
                                   theirs.widths)
            torch.testing.assert_close(query,
                                       torch.nn.functional.normalize(expected),
                                       **EXACT)
        if method == 'simclr':
            assert ours.teacher is None
        else:
            (_, key), = ours.teacher([x], 1.0)
            torch.testing.assert_close(key, theirs.teacher.embed(x, 0),
                                       **EXACT)
    if method == 'mocov2':
        assert torch.equal(ours.head.queue, theirs.queue.T)
        assert int(ours.head.queue_ptr) == 8
    assert converted.left_out == dict(
        mocov2=['the narrower norms of encoder_k'], mocov3=[
            'the narrower norms of momentum_encoder'], simclr=[])[method]


@pytest.mark.parametrize('shared, kind', [(False, 'all-widths'),
                                          (True, 'shared')])
def test_probes_name_the_config_of_their_kind(shared, kind):
    model = dict(backbone=AUTHORS, head=dict(shared=shared))
    converted = ConvertedSlimCLR(model, {}, 'probe', [], [])
    assert f'linear-{kind}-mocov2' in converted.config
    assert (ROOT / 'configs/slimclr' / converted.config).exists()
    other = ConvertedSlimCLR(dict(backbone={}), {}, 'mocov2', [], [])
    assert other.config is None


@pytest.mark.parametrize('shared', [False, True])
def test_linear_probes_have_the_same_scores(shared, in_double):
    theirs = Probe(shared).eval()
    for wrapper in ('', 'module.'):
        state = {
            wrapper + key: value for key, value in theirs.state_dict().items()}
        converted = from_slimclr(dict(state_dict=state))
        assert converted.method == 'probe' and converted.left_out == []
        ours, x = build(converted).eval(), images()
        assert len(ours.head.linears) == (1 if shared else 4)
        with torch.no_grad():
            for i, width in enumerate(WIDTHS):
                with at(ours, width):
                    torch.testing.assert_close(ours(x), theirs.scores(x, i),
                                               **EXACT)


def test_the_tool_writes_a_checkpoint_that_other_tools_read(tmp_path, capsys):
    theirs = Theirs('mocov2', widths=[1.0, 0.5]).eval()
    torch.save(theirs.file(without=['num_batches_tracked']),
               tmp_path / 'theirs.pth')
    tool([tmp_path / 'theirs.pth', tmp_path / 'ours.pth'])
    said = capsys.readouterr().out
    for words in ('MoCo v2.', 'Config: none of ours', "'depth': 50",
                  'Widths: w1.00, w0.50.',
                  'Left out: the narrower norms of encoder_k'):
        assert words in said
    network, x = load_backbone(str(tmp_path / 'ours.pth')).eval(), images()
    for i, width in enumerate((1.0, 0.5)):
        with torch.no_grad(), at(network, width):
            torch.testing.assert_close(
                network(x)[-1], theirs.student.maps(x, i))
    with pytest.raises(ValueError, match=r'w0.30: this network .*w0.50\]'):
        with at(network, 0.3):
            pass
    tool([tmp_path / 'theirs.pth', tmp_path / 'alone.pth', '--backbone-only'])
    assert 'Left out: encoder_k, encoder_q.fc, queue' in (
        capsys.readouterr().out)
    alone = load_backbone(str(tmp_path / 'alone.pth')).state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(alone[key], value)


def changed(method, change):
    content = Theirs(method).file()
    content['state_dict'] = change(content['state_dict'])
    return content


def without(*parts):
    return lambda state: {
        key: value for key, value in state.items()
        if not any(re.search(part, key) for part in parts)}


@pytest.mark.parametrize('method, change, message', [
    ('mocov2', without('encoder_q'), r'has one student.* has \[\] and '
     r"\['encoder_k\.'\]"), ('mocov2', without('features'), 'us3l_to_ours.py'),
    ('mocov2', without(r'queue'), 'cannot be recognised.*no queue.*Known are'),
    ('mocov3', without('predictor'), 'no predictor.*--backbone-only'),
    ('simclr', without(r'\.fc\.'), 'no norm in the projector'),
    ('simclr', without(r'bn1\.bn\.0'), r'first convolution has 32'),
    ('simclr', without(r'features\.15\.'), 'No ResNet has 15 blocks with '
     'bottleneck'),
    ('simclr', without(r'features\.15\.conv2'), 'does not fit this us3l_mm'),
    ('simclr', without(r'features\.3\.bn2\.bn\.2'), 'does not fit'),
    ('simclr', without(r'fc\.3\.weight'), 'not made of linear layers'),
    ('mocov3', without(r'predictor\.1\.bn\.3'), 'does not fit'),
    ('mocov2', lambda state: {
        **state, 'module.encoder_q.features.0.conv9.weight': torch.ones(1)},
     'layer1.0.conv9.weight, for which there is no place'),
    ('mocov2', lambda state: {
        key: value[:-8] if key.endswith('features.2.conv1.weight') else value
        for key, value in state.items()}, 'another shape')])
def test_what_is_no_file_of_slimclr_is_refused(method, change, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        from_slimclr(changed(method, change))


def test_private_projectors_are_refused():
    """The ablation whose linear layers are private has no class here."""
    theirs = Theirs('mocov2')
    for encoder in (theirs.encoder_q, theirs.encoder_k):
        encoder.fc[0] = nn.ModuleDict(
            dict(linear=nn.ModuleList(nn.Linear(8, 8) for _ in WIDTHS)))
    with pytest.raises(ValueError, match='not made of linear layers'):
        from_slimclr(theirs.file())
    assert not any(isinstance(m, Norms) for m in theirs.encoder_q.fc)
    alone = from_slimclr(theirs.file(), backbone_only=True)
    assert alone.method is None


def test_a_mistake_is_a_sentence(tmp_path, capsys):
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), tmp_path / 'a.pth')
    with pytest.raises(SystemExit) as stop:
        tool([tmp_path / 'a.pth', tmp_path / 'out.pth'])
    assert 'slimclr_to_ours: A file of SlimCLR has one student' in str(
        stop.value)
    assert not (tmp_path / 'out.pth').exists()
