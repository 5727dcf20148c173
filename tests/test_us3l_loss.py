# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Losses, log and arguments of the algorithm; see test_train_step.py too."""
import naive
import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper

from us3l_mm.models import (FeatureDistiller, InfoNCELoss, MoCoV3Loss, Plan,
                            Subnet, US3LAlgorithm, at_width)
from us3l_mm.models.backbones import SlimmableResNet_CIFAR
from us3l_mm.models.selfsup import spread
from us3l_mm.registry import MODELS


def pair(images=6, features=5, dtype=torch.float64):
    return (torch.randn(images, features, dtype=dtype).requires_grad_(),
            torch.randn(images, features, dtype=dtype).requires_grad_())


# Losses ----------------------------------------------------------------------


@pytest.mark.parametrize('temperature', [0.5, 0.1, 2.0])
@pytest.mark.parametrize('images', [2, 3, 7])
def test_info_nce_equals_a_loop_over_pairs(temperature, images):
    pred, target = pair(images)
    loss = InfoNCELoss(temperature)(pred, target)
    loss.backward()
    expected = naive.info_nce(pred, target.detach(), temperature)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    grad, = torch.autograd.grad(expected, pred)
    torch.testing.assert_close(pred.grad, grad, rtol=0, atol=1e-12)
    assert target.grad is None


def test_info_nce_of_known_embeddings():
    # Two images, both embedded alike in both views, at right angles: each row
    # sees its partner at cosine 1 and two others at 0.
    eye = torch.eye(2, dtype=torch.float64)
    expected = -np.log(np.exp(2) / (np.exp(2) + 2))
    assert InfoNCELoss(0.5)(3 * eye, eye).item() == pytest.approx(expected)


def test_info_nce_in_half_precision_is_that_of_single_precision():
    pred, target = pair(dtype=torch.float32)
    pred, target = pred.detach().bfloat16(), target.detach().bfloat16()
    loss = InfoNCELoss(0.05)(pred, target)
    assert loss.dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        equal = InfoNCELoss(0.05)(pred.float(), target.float())
    torch.testing.assert_close(loss, equal)
    torch.testing.assert_close(
        loss.double(), naive.info_nce(pred.double(), target.double(), 0.05),
        rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('loss, name', [(InfoNCELoss, 'InfoNCE'),
                                        (MoCoV3Loss, 'MoCo v3')])
@pytest.mark.parametrize('temperature', [0, -1.0, float('nan')])
def test_a_temperature_that_cannot_work_is_refused(loss, name, temperature):
    with pytest.raises(ValueError, match=f'temperature of {name} is above 0'):
        loss(temperature)


@pytest.mark.parametrize('temperature', [0.2, 1.0])
@pytest.mark.parametrize('images', [1, 2, 7])
def test_moco_v3_equals_a_loop_over_pairs(temperature, images):
    pred, target = pair(images)
    loss = MoCoV3Loss(temperature)(pred, target)
    loss.backward()
    expected = naive.moco_v3(pred, target.detach(), temperature)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    grad, = torch.autograd.grad(expected, pred)
    torch.testing.assert_close(pred.grad, grad, rtol=0, atol=1e-12)
    assert target.grad is None


def test_moco_v3_is_the_loss_of_mmpretrains_head():
    pred, target = pair(dtype=torch.float32)
    head = MODELS.build(
        dict(
            type='mmpretrain.MoCoV3Head', temperature=0.3,
            predictor=dict(type='us3l_mm.Identity'),
            loss=dict(type='mmpretrain.CrossEntropyLoss',
                      loss_weight=2 * 0.3)))
    torch.testing.assert_close(
        MoCoV3Loss(0.3)(pred, target), head.loss(pred, target))


def test_moco_v3_in_half_precision_is_that_of_single_precision():
    pred, target = (x.detach().bfloat16() for x in pair(dtype=torch.float32))
    with torch.autocast('cpu', torch.bfloat16):
        loss = MoCoV3Loss(0.05)(pred, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), naive.moco_v3(pred.double(), target.double(), 0.05),
        rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', naive.LOSSES)
def test_each_loss_by_name_equals_its_definition(name):
    algorithm = naive.small_algorithm('byol', base_loss=name)
    pred, target = pair(features=12)
    loss = algorithm.head.loss_module(pred, target.detach())
    torch.testing.assert_close(loss, naive.LOSSES[name](pred, target.detach()),
                               rtol=0, atol=1e-12)


def test_feature_distillation_averages_maps_and_lifts_narrow_ones():
    distiller = FeatureDistiller([16, 24], loss_weight=3.0).double()
    maps = [torch.randn(2, c, 3, 3, dtype=torch.float64) for c in (8, 16)]
    targets = [
        torch.randn(2, c, 3, 3, dtype=torch.float64, requires_grad=True)
        for c in (16, 24)
    ]
    with at_width(distiller, 0.5):
        loss = distiller.loss(maps, targets)
    expected = 0
    for x, t, layer in zip(maps, targets, distiller.projections):
        kernel = layer.weight[:, :x.shape[1], 0, 0]
        lifted = torch.einsum('nchw,oc->nohw', x, kernel)
        lifted = lifted + layer.bias.view(1, -1, 1, 1)
        expected = expected + 3 * ((lifted - t)**2).mean() / 2
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    loss.backward()
    assert targets[0].grad is None
    with pytest.raises(ValueError, match=r'backbone.out_indices.*got \[2\]'):
        FeatureDistiller([16, 24], outputs=[2])


# One pass --------------------------------------------------------------------


@pytest.mark.parametrize('base_method', sorted(naive.METHODS))
@pytest.mark.parametrize('width', [1.0, 0.7, 0.5, 0.25])
@pytest.mark.parametrize('is_base', [True, False])
def test_a_pass_is_crosswise_over_views(base_method, width, is_base):
    """At any width, in either role, for targets of our own choosing."""
    algorithm = naive.small_algorithm(base_method)
    params = {k: v.detach() for k, v in algorithm.named_parameters()}
    trainer = naive.NaiveTrainer(params, base_method)
    _, views = naive.batch()
    targets = [(None, torch.randn(5, 12).double()) for _ in views]
    with at_width(algorithm, width):
        output = algorithm(views, mode='loss', targets=targets,
                           subnet=Subnet(width, 'min', is_base))
    (_, z1), (_, z2) = (trainer.encode(params, v, width) for v in views)
    criterion = trainer.base_loss if is_base else trainer.distill_loss
    expected = 0.5 * (
        criterion(trainer.head(params, z1, not is_base), targets[1][1]) +
        criterion(trainer.head(params, z2, not is_base), targets[0][1]))
    name = 'loss_base' if is_base else 'loss_distill_min'
    assert list(output['losses']) == [name]
    torch.testing.assert_close(output['losses'][name], expected, rtol=0,
                               atol=1e-9)
    for (_, actual), z in zip(output['encoded'], (z1, z2)):
        torch.testing.assert_close(actual, z, rtol=0, atol=1e-9)
        assert not actual.requires_grad


@pytest.mark.parametrize('base_method', sorted(naive.METHODS))
def test_modules_are_those_of_the_table_of_the_specification(base_method):
    """Section 3, with its own sizes: no argument but the method's name."""
    algorithm = US3LAlgorithm(
        SlimmableResNet_CIFAR(18, base_channels=16, stem_channels=16),
        base_method)

    def layers(module):
        return [(m.in_features, m.out_features) for m in module.modules()
                if isinstance(m, torch.nn.Linear)]

    def norms(module):
        return [(m.num_features, m.affine) for m in module.modules()
                if hasattr(m, 'num_features')]

    simclr, siam = base_method.startswith('simclr'), 'siam' in base_method
    moco = base_method == 'moco_v3'
    out, hidden = 256 if simclr or moco else 2048, 512 if siam else 2048
    assert layers(algorithm.neck) == [(128, 2048), (2048, 2048), (2048, out)]
    assert norms(algorithm.neck) == [(2048, True)] * 2 + ([(out, False)] if
                                                          siam or moco else [])
    two = [(out, hidden), (hidden, out)]
    assert layers(algorithm.head) == ([] if simclr else two)
    assert layers(algorithm.distill_head) == two
    assert norms(algorithm.distill_head) == [
        (hidden, True)
    ] + ([(out, False)] if moco else [])
    assert (algorithm.teacher is None) == (base_method == 'simsiam')


def test_a_predictor_with_a_type_brings_all_its_arguments():
    algorithm = naive.small_algorithm(distill_predictor=dict(
        type='mmpretrain.NonLinearNeck', in_channels=12, hid_channels=16,
        out_channels=12, num_layers=3, with_avg_pool=False, norm_cfg=dict(
            type='BN1d')))
    predictor = algorithm.distill_head.predictor
    assert predictor.fc2.out_features == 12
    assert type(predictor.bn2) is torch.nn.BatchNorm1d  # as it defaults to
    log = train_once(algorithm, [1.0, 0.5])
    assert -1 <= log['loss_distill_min'] <= 1


# The log ---------------------------------------------------------------------


def train_once(algorithm, widths, seed=0):
    algorithm.plan = Plan.of(widths, stage=3)
    return algorithm.train_step(
        naive.batch(seed)[0],
        OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=0.01)))


def test_log_keys_stay_while_widths_change():
    algorithm = naive.small_algorithm('byol', feature_distill=dict())
    logs = [
        train_once(algorithm, widths, seed)
        for seed, widths in enumerate([[1.0, 0.9, 0.5], [1.0, 0.3, 0.25]])
    ]
    assert list(logs[0]) == list(logs[1]) == [
        'loss', 'stage', 'width_max', 'loss_base', 'spread_max',
        'spread_teacher', 'width_rand', 'loss_distill_rand',
        'loss_feature_rand', 'spread_rand', 'width_min', 'loss_distill_min',
        'loss_feature_min', 'spread_min'
    ]
    for log in logs:
        assert log['stage'] == 3
        assert float(log['loss']) == pytest.approx(
            sum(float(v) for k, v in log.items() if k.startswith('loss_')))
        assert not any(
            getattr(v, 'requires_grad', False) for v in log.values())


def test_log_keys_without_distillation():
    log = train_once(naive.small_algorithm('byol', distill_from=None),
                     [1.0, 0.5, 0.25])
    assert [k for k in log if k.startswith('loss')
            ] == ['loss', 'loss_base', 'loss_base_rand', 'loss_base_min']


def test_spread_equals_its_definition_in_numpy():
    x = np.random.RandomState(0).randn(9, 7) + 0.5
    unit = x / np.sqrt((x**2).sum(1, keepdims=True))
    expected = unit.std(axis=0, ddof=1).mean() * np.sqrt(7)
    assert spread(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-5)


def test_spread_tells_collapse_from_directions_all_over():
    assert spread(torch.randn(4000, 64)).item() == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(16, 1) * torch.randn(1, 64)) < 1e-5
    # Only directions count: lengths may differ.
    assert spread(torch.rand(16, 1).add(1) * torch.randn(1, 64)) < 1e-5


# Bad input -------------------------------------------------------------------


@pytest.mark.parametrize('options, message', [
    (dict(base_method='moco'), r"base_method is one of \['byol', 'moco_v3', 's"
     r"imclr_momentum', 'simsiam', 'simsiam_momentum'\], got 'moco'"),
    (dict(base_loss='triplet'), r"of \['cosine', 'info_nce', 'moco_v3', "
     r"'mse'\] or a config dict, got 'triplet'"),
    (dict(distill_loss='kl'), "or a config dict, got 'kl'"),
    (dict(update_mode='summed'), r"'accumulate', 'joint'\), got 'summed'"),
    (dict(distill_from='student'), "'teacher', 'online', None.*got 'student'"),
    (dict(teacher_momentum=0.99), r'share of the student.*got 0\.99; a '
     r"paper's m=0\.99 is 0\.01 here"),
    (dict(teacher_momentum=-0.1), 'share of the student'),
    (dict(feature_distill={},
          distill_from=None), 'feature_distill needs a distill_from'),
    (dict(feature_distill=dict(outputs=[4])), r'has 4 \(.*got \[4\]'),
], ids=str)
def test_arguments_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(
            dict(
                type='us3l_mm.US3LAlgorithm',
                backbone=dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18,
                              base_channels=16, stem_channels=16,
                              out_indices=(0, 1, 2, 3)),
                neck=dict(hid_channels=16, out_channels=8), **options))


@pytest.mark.parametrize('views', [1, 3, 'tensor'])
def test_a_batch_without_two_views_is_refused(views):
    algorithm = naive.small_algorithm()
    data, _ = naive.batch()
    view = data['inputs'][0]
    data['inputs'] = view if views == 'tensor' else [view] * views
    got = 1 if views == 'tensor' else views
    before = {k: v.clone() for k, v in algorithm.state_dict().items()}
    with pytest.raises(
            ValueError, match=f'two views of each image, got {got}'
            r'\. Give the pipeline.*MultiView'):
        algorithm.train_step(
            data, OptimWrapper(torch.optim.SGD(algorithm.parameters(),
                                               lr=0.1)))
    torch.testing.assert_close(dict(algorithm.state_dict()), before, rtol=0,
                               atol=0)


def test_accumulation_over_batches_is_refused():
    algorithm = naive.small_algorithm()
    wrapper = OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=0.1),
                           accumulative_counts=2)
    with pytest.raises(
            ValueError, match='after each pass of a batch.*; got '
            r"accumulative_counts=2\..*update_mode='accumulate'"):
        algorithm.train_step(naive.batch()[0], wrapper)


def test_a_loss_without_a_sub_network_is_refused():
    algorithm = naive.small_algorithm()
    with pytest.raises(
            RuntimeError, match=r'told the sub-network.*'
            r'us3l_mm\.US3LDistributedDataParallel'):
        algorithm(naive.batch()[1], mode='loss')
    with pytest.raises(RuntimeError, match='Invalid mode "predict"'):
        algorithm(naive.batch()[1], mode='predict')


def test_a_failing_pass_leaves_the_full_width_behind():
    algorithm = naive.small_algorithm()
    algorithm.head.loss = None
    with pytest.raises(TypeError):
        train_once(algorithm, [0.5])
    assert algorithm.backbone.conv1.width == 1.0
