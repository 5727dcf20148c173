# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Losses, log and arguments of the algorithm; see test_train_step.py too."""
import naive
import numpy as np
import pytest
import torch
from algorithms import (LOSSES, RESNET, model_cfg, sgd, small_algorithm,
                        train_step)

from us3l_mm.models import (FeatureDistiller, InfoNCELoss, MoCoV3Loss,
                            MultiPassSSL, Pass, Plan, PredictionHead, Subnet,
                            at_width)
from us3l_mm.models.selfsup import Batch, spread
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


@pytest.mark.parametrize('loss', [InfoNCELoss, MoCoV3Loss])
@pytest.mark.parametrize('temperature', [0, -1.0, float('nan')])
def test_a_temperature_that_cannot_work_is_refused(loss, temperature):
    with pytest.raises(ValueError,
                       match=f'temperature of {loss.__name__} is above 0'):
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
            type='mmpretrain.MoCoV3Head', temperature=0.3, predictor=dict(
                type='us3l_mm.Predictor', in_channels=5,
                hid_channels=5, out_channels=5), loss=dict(
                    type='mmpretrain.CrossEntropyLoss', loss_weight=2 * 0.3)))
    head.predictor = torch.nn.Identity()
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
def test_each_loss_of_a_head_equals_its_definition(name):
    head = PredictionHead(LOSSES[name], weight=1.0)
    pred, target = pair(features=12)
    loss = head.loss(pred, target)
    torch.testing.assert_close(loss, naive.LOSSES[name](pred, target.detach()),
                               rtol=0, atol=1e-12)
    loss.backward()
    assert target.grad is None and pred.grad.abs().min() > 0


@pytest.mark.parametrize('name', naive.LOSSES)
def test_the_loss_of_half_precision_is_computed_in_single_precision(name):
    """The predictor runs in half precision, as the networks do."""
    predictor = dict(type='us3l_mm.Predictor', in_channels=12, hid_channels=16,
                     out_channels=12, num_layers=2, with_last_bn=False)
    head = PredictionHead(LOSSES[name], predictor, weight=1.0).train()
    pred, target = (x.detach().bfloat16() for x in pair(features=12))
    seen = []
    head.predictor.fc1.register_forward_hook(
        lambda _, __, out: seen.append(out.detach()))
    with torch.autocast('cpu', torch.bfloat16):
        loss = head.loss(pred, target)
    assert loss.dtype == torch.float32
    assert seen[0].dtype == torch.bfloat16
    expected = naive.LOSSES[name](seen[0].double(), target.double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in head.parameters())


@pytest.mark.parametrize('with_bias', [False, True])
def test_feature_distillation_averages_maps_and_lifts_narrow_ones(with_bias):
    distiller = FeatureDistiller([16, 24], with_bias=with_bias,
                                 loss_weight=3.0).double()
    maps = [torch.randn(2, c, 3, 3, dtype=torch.float64) for c in (8, 16)]
    targets = [
        torch.randn(2, c, 3, 3, dtype=torch.float64, requires_grad=True)
        for c in (16, 24)]
    with at_width(distiller, 0.5):
        loss = distiller.loss(maps, targets)
    expected = 0
    for x, t, layer in zip(maps, targets, distiller.projections):
        kernel = layer.weight[:, :x.shape[1], 0, 0]
        lifted = torch.einsum('nchw,oc->nohw', x, kernel)
        if with_bias:
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
    algorithm = small_algorithm(base_method)
    params = {k: v.detach() for k, v in algorithm.named_parameters()}
    trainer = naive.NaiveTrainer(params, base_method)
    _, views = naive.batch()
    targets = [(None, torch.randn(5, 12).double()) for _ in views]
    pass_ = Pass(Subnet(width), 'min', 'base' if is_base else 'distil')
    batch = Batch(views, Plan((pass_, )), targets={pass_: targets},
                  carried=dict(online=targets))
    if not is_base:  # those of the full width, and none of its own
        batch.targets = dict(teacher=targets)
    with at_width(algorithm, width):
        output = algorithm(batch, mode='loss', pass_=pass_)
    (_, z1), (_, z2) = (trainer.encode(params, v, width) for v in views)
    criterion = trainer.base_loss if is_base else trainer.distill_loss
    expected = 0.5 * (
        criterion(trainer.head(params, z1, not is_base), targets[1][1]) +
        criterion(trainer.head(params, z2, not is_base), targets[0][1]))
    name = 'loss_base' if is_base else 'loss_distill_min'
    assert list(output['losses']) == [name]
    torch.testing.assert_close(output['losses'][name], expected, rtol=0,
                               atol=1e-9)
    # What the base pass leaves is its own output, for later passes.
    assert list(output['carried']) == ['online'] * is_base
    for (_, actual), z in zip(output['carried'].get('online', ()), (z1, z2)):
        torch.testing.assert_close(actual, z, rtol=0, atol=1e-9)
        assert not actual.requires_grad


def test_a_predictor_can_be_any_module():
    cfg = model_cfg()
    cfg['distill_head']['predictor'] = dict(
        type='mmpretrain.NonLinearNeck', in_channels=12, hid_channels=16,
        out_channels=12, num_layers=3, with_avg_pool=False, norm_cfg=dict(
            type='BN1d'))
    algorithm = MODELS.build(cfg).double()
    predictor = algorithm.distill_head.predictor
    assert type(predictor.bn2) is torch.nn.BatchNorm1d
    log = train_step(algorithm, naive.batch()[0], sgd(algorithm), [1.0, 0.5])
    assert -1 <= log['loss_distill_min'] <= 1


class Calls(MultiPassSSL):
    """Writes down which of its methods are called, and with what."""

    def __init__(self, **kwargs):
        super().__init__(
            RESNET,
            dict(type='us3l_mm.SlimmableProjector', in_channels=64,
                 hid_channels=8, out_channels=8),
            dict(type='us3l_mm.PredictionHead', loss=LOSSES['mse']), **kwargs)
        self.calls = []

    def begin(self, batch):
        self.calls.append(('begin', self.backbone.conv1.width))
        batch.targets['zero'] = torch.zeros(5, 8)
        assert not batch.carried

    def loss(self, batch, pass_):
        self.calls.append((pass_.name, self.backbone.conv1.width))
        z, = self.neck(self.backbone(batch.views[0].float())[-1:])
        carried = {pass_.name: z.detach()}
        # Passes find what those before them have left, and it alone.
        assert list(batch.carried) == [name for name, _ in self.calls[1:-1]]
        return dict(losses=dict(loss=self.head.loss(z, batch.targets['zero'])),
                    carried=carried)

    def end(self, batch):
        self.calls.append(('end', self.backbone.conv1.width))
        assert list(batch.carried) == ['max', 'rand', 'min']
        assert not batch.carried['max'].requires_grad


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_a_subclass_is_called_once_a_batch_and_once_a_pass(update_mode):
    algorithm = Calls(update_mode=update_mode)
    log = train_step(algorithm,
                     naive.batch()[0], sgd(algorithm), [1.0, 0.5, 0.25])
    assert algorithm.calls == [('begin', 1.0), ('max', 1.0), ('rand', 0.5),
                               ('min', 0.25), ('end', 1.0)]
    assert [k for k in log if k.startswith('width')] == [
        'width_max', 'width_rand', 'width_min']


# The log ---------------------------------------------------------------------


def train_once(algorithm, widths, seed=0):
    return train_step(algorithm,
                      naive.batch(seed)[0], sgd(algorithm, lr=0.01), widths,
                      stage=3)


def test_log_keys_stay_while_widths_change():
    algorithm = small_algorithm('byol', feature_distiller=dict())
    logs = [
        train_once(algorithm, widths, seed)
        for seed, widths in enumerate([[1.0, 0.9, 0.5], [1.0, 0.3, 0.25]])]
    assert list(logs[0]) == list(logs[1]) == [
        'loss', 'stage', 'loss_base', 'width_max', 'spread_max',
        'spread_teacher', 'loss_distill_rand', 'loss_feature_rand',
        'width_rand', 'spread_rand', 'loss_distill_min', 'loss_feature_min',
        'width_min', 'spread_min', 'skipped']
    for log in logs:
        assert log['stage'] == 3
        assert float(log['loss']) == pytest.approx(
            sum(float(v) for k, v in log.items() if k.startswith('loss_')))
        assert not any(
            getattr(v, 'requires_grad', False) for v in log.values())


def test_log_keys_of_a_fixed_list_are_those_of_its_sub_networks():
    algorithm = small_algorithm('byol')
    plan = Plan.fixed([0.75, 1.0, 0.28125])
    log = algorithm.train_step(dict(naive.batch()[0], plan=plan),
                               sgd(algorithm))
    assert list(log) == [
        'loss', 'stage', 'loss_base', 'width_w1.00', 'spread_w1.00',
        'spread_teacher', 'loss_distill_w0.75', 'width_w0.75', 'spread_w0.75',
        'loss_distill_w0.28125', 'width_w0.28125', 'spread_w0.28125',
        'skipped']
    assert log['width_w0.28125'] == 0.28125


def test_log_keys_without_distillation():
    log = train_once(small_algorithm('byol', distill_from=None),
                     [1.0, 0.5, 0.25])
    assert [k for k in log if k.startswith('loss')] == [
        'loss', 'loss_base', 'loss_base_rand', 'loss_base_min']


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

REFUSED = [
    (dict(base_from='student'), r"base_from is one of .*got 'student'"),
    (dict(base_from=None), 'base_from is one of .*got None'),
    (dict(distill_from='student'), "'teacher', 'online', None.*got 'student'"),
    (dict(distill_head=None), "distill_from='teacher' needs; it is missing"),
    (dict(distill_from=None), 'distill_from=None leaves out; remove it'),
    (dict(update_mode='summed'), r"'accumulate'\), got 'summed'"),
    (dict(update_mode='joint'), r"'accumulate'\), got 'joint'"),
    (dict(share_predictor=True), 'give a distill_head without a predictor'),
    (dict(share_predictor=True, distill_from=None, distill_head=None),
     'give a distill_head without a predictor, got None'),
    (dict(teacher=dict(momentum=0.99)), r'share of the student.*got 0\.99; a '
     r"paper's m=0\.99 is 0\.01 here"),
    (dict(teacher=dict(momentum=-0.1)), 'share of the student'),
    (dict(feature_distiller={}, distill_from=None,
          distill_head=None), 'feature_distiller needs targets'),
    (dict(feature_distiller=dict(outputs=[4])), r'has 3 \(.*got \[4\]'),
    (dict(backbone=dict(RESNET, base_channels=32)),
     'features of this backbone have 128 channels, got neck.in_channels=64'), ]


@pytest.mark.parametrize('options, message', REFUSED, ids=str)
def test_arguments_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({**model_cfg(), **options})


@pytest.mark.parametrize('views', [1, 3, 'tensor'])
def test_a_batch_without_two_views_is_refused(views):
    algorithm = small_algorithm()
    data, _ = naive.batch()
    view = data['inputs'][0]
    data['inputs'] = view if views == 'tensor' else [view] * views
    got = 1 if views == 'tensor' else views
    before = {k: v.clone() for k, v in algorithm.state_dict().items()}
    with pytest.raises(
            ValueError, match=f'2 views of each image, got {got}'
            r'\. Give the pipeline.*MultiView'):
        train_step(algorithm, data, sgd(algorithm))
    torch.testing.assert_close(dict(algorithm.state_dict()), before, rtol=0,
                               atol=0)


def test_a_batch_without_a_plan_is_refused():
    algorithm = small_algorithm()
    with pytest.raises(
            RuntimeError, match='The batch has no plan.*default_hooks.sampler='
            r"dict\(type='us3l_mm.DynamicSamplerHook'\)"):
        algorithm.train_step(naive.batch()[0], sgd(algorithm))


def test_the_plan_is_that_of_the_batch_and_the_batch_keeps_it():
    algorithm = small_algorithm()
    wrapper = sgd(algorithm)
    for seed, widths in enumerate([[0.5], [1.0, 0.4]]):
        data = dict(naive.batch(seed)[0], plan=Plan.sampled(widths, seed))
        keys = list(data)
        log = algorithm.train_step(data, wrapper)
        assert list(data) == keys and log['stage'] == seed
        assert [v for k, v in log.items() if k.startswith('width')] == widths


def test_accumulation_over_batches_is_refused():
    algorithm = small_algorithm()
    with pytest.raises(
            ValueError, match='after each pass of a batch.*; got '
            r"accumulative_counts=2\..*update_mode='accumulate'"):
        train_step(algorithm,
                   naive.batch()[0], sgd(algorithm, accumulative_counts=2))


def test_a_loss_without_a_pass_is_refused():
    algorithm = small_algorithm()
    with pytest.raises(
            RuntimeError, match=r'a loss without a pass.*'
            r'us3l_mm\.MultiPassDistributedDataParallel'):
        algorithm(naive.batch()[1], mode='loss')
    with pytest.raises(RuntimeError, match='Invalid mode "predict"'):
        algorithm(naive.batch()[1], mode='predict')


def test_a_failing_pass_leaves_the_full_width_behind():
    algorithm = small_algorithm()
    algorithm.head.loss = None
    with pytest.raises(TypeError):
        train_once(algorithm, [0.5])
    assert algorithm.backbone.conv1.width == 1.0
