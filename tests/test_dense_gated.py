# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""``DenseGatedSSL`` against its definition, and itself."""
import math
import os

import naive
import pytest
import torch
from algorithms import sgd, student_parameters
from gated_networks import HEADS, RESNET, FixedNoise, model_cfg, small_gated
from mmpretrain.models import ResNet_CIFAR
from naive_gated import NaiveDenseGated
from processes import run_processes

from us3l_mm.engine import MultiPassDistributedDataParallel
from us3l_mm.models import Plan, RotationHead
from us3l_mm.models.layers import at
from us3l_mm.registry import MODELS

BOTH = ('gated', 'dense')


def plan(progress=0.0):
    return Plan.fixed([1.0], progress)


class Always:
    """A function of one value."""

    def __init__(self, value):
        self.value = value

    def __call__(self, *args, **kwargs):
        return self.value


def close(actual, expected, what):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9,
                               msg=lambda text: f'{what}: {text}')


def check(monkeypatch, head, modes=BOTH, budget=(), warmup=0.0, used=None,
          **kwargs):
    """Two iterations: losses, gradients, parameters, to rounding."""
    options = dict(target=0.5, **dict(budget))
    algorithm = small_gated(head, budget=options if 'gated' in modes else None,
                            modes=modes, gate_warmup=warmup, **kwargs)
    trainer = NaiveDenseGated(
        student_parameters(algorithm), head, **{
            dict(bound_weight='gamma').get(k, k): v
            for k, v in options.items()})
    wrapper = sgd(algorithm)
    seen = {}
    for name, p in algorithm.named_parameters():
        p.register_hook(lambda grad, name=name: seen.__setitem__(name, grad))
    for iteration in range(2):
        noise = FixedNoise(monkeypatch, iteration)
        progress = iteration / 4
        data, views = naive.batch(iteration, images=6)
        seen.clear()
        turns = torch.tensor([3, 0, 1, 2, 1, 0]).roll(iteration)
        with monkeypatch.context() as patch:
            patch.setattr(torch, 'randint', Always(turns))
            log = algorithm.train_step(dict(data, plan=plan(progress)),
                                       wrapper)
        losses, grads = trainer.step(views, used[iteration] if used else modes,
                                     progress - warmup, noise.drawn,
                                     turns if algorithm.rotation else None)
        assert {k for k in log if k.startswith('loss_')} == {*losses}
        for name, value in losses.items():
            assert float(log[name]) == pytest.approx(value, abs=1e-9), name
        assert float(log['loss']) == pytest.approx(sum(losses.values()))
        assert {k for k, g in seen.items() if g is not None} == {*grads}
        for name, grad in grads.items():
            close(seen[name], grad, f'gradient of {name}')
        for name, p in student_parameters(algorithm).items():
            close(p.data, trainer.params[name], name)
    return seen


@pytest.mark.parametrize('head', HEADS)
def test_two_iterations_equal_the_definition(monkeypatch, head):
    gradients = check(monkeypatch, head)
    gates = [g for name, g in gradients.items() if '.gate1.' in name]
    assert len(gates) == 4 * 4 and all(g.abs().max() > 0 for g in gates)


@pytest.mark.parametrize('budget', [
    dict(expected=True),
    dict(bound='linear'),
    dict(weight=2.0, bound_weight=3.0, anneal=1.0)], ids=str)
def test_other_budgets_equal_the_definition(monkeypatch, budget):
    check(monkeypatch, 'vicreg', budget=budget)


def test_shared_norms_equal_the_definition(monkeypatch):
    backbone = dict(RESNET, norm_cfg=dict(type='BN'))
    check(monkeypatch, 'vicreg', backbone=backbone)


@pytest.mark.parametrize('modes', [('gated', 'gated'), ('dense', 'dense'),
                                   ('dense', 'gated')], ids=str)
def test_the_baselines_equal_the_definition(monkeypatch, modes):
    check(monkeypatch, 'vicreg', modes=modes)


def test_two_networks_and_the_rotation_task_equal_the_definition(monkeypatch):
    check(monkeypatch, 'vicreg', separate=True)
    check(monkeypatch, 'vicreg', rotation=dict(hid_channels=8))
    algorithm = small_gated(swap_views=True)
    used = [algorithm.modes_of(plan(i / 4)) for i in range(2)]
    check(monkeypatch, 'vicreg', separate=True, swap_views=True,
          rotation=dict(hid_channels=8), used=used)


def test_two_networks_share_nothing():
    algorithm = small_gated(separate=True)
    names = {*dict(algorithm.dense_network.backbone.named_parameters())}
    assert names == {
        *dict(
            ResNet_CIFAR(**{
                k: v
                for k, v in RESNET.items() if k != 'type'}).named_parameters())
    }
    gated = {
        id(p) for p in (*algorithm.backbone.parameters(),
                        *algorithm.neck.parameters())}
    assert not gated & {id(p) for p in algorithm.dense_network.parameters()}
    with pytest.raises(TypeError, match='from a config, got a GatedResNet'):
        small_gated(separate=True, backbone=algorithm.backbone)


def test_images_are_turned_as_the_label_says():
    images = torch.arange(2 * 3 * 4 * 4.).view(2, 3, 4, 4).repeat(8, 1, 1, 1)
    torch.manual_seed(0)
    turned, turns = RotationHead.rotate(images)
    assert {*turns.tolist()} == {0, 1, 2, 3}
    for image, whole, k in zip(images, turned, turns):
        for _ in range(int(k)):
            image = image.transpose(1, 2).flip(1)
        assert torch.equal(image, whole)
    with pytest.raises(ValueError, match='square, got 4 x 5'):
        RotationHead.rotate(torch.zeros(2, 3, 4, 5))


def test_gates_wait_until_warm_up_is_over(monkeypatch):
    check(monkeypatch, 'vicreg', warmup=0.25, used=[('dense', 'dense'), BOTH])


def test_swapped_views_equal_the_definition(monkeypatch):
    algorithm = small_gated(swap_views=True)
    used = [algorithm.modes_of(plan(i / 4)) for i in range(2)]
    assert {*used} == {BOTH, BOTH[::-1]}  # of this seed
    check(monkeypatch, 'vicreg', swap_views=True, used=used)


def test_views_are_swapped_in_half_of_the_iterations():
    algorithm = small_gated(swap_views=True)
    drawn = [algorithm.modes_of(plan(i / 1000)) for i in range(1000)]
    assert 450 < sum(modes == BOTH for modes in drawn) < 550
    assert drawn == [algorithm.modes_of(plan(i / 1000)) for i in range(1000)]
    other = small_gated(swap_views=True, seed=1)
    assert drawn != [other.modes_of(plan(i / 1000)) for i in range(1000)]


def test_the_log_tells_ratio_densities_and_bounds(monkeypatch):
    noise = FixedNoise(monkeypatch)
    algorithm = small_gated()
    masks = []
    for block in algorithm.backbone.blocks.values():
        block.gate1.register_forward_hook(
            lambda _, inputs, out: masks.append(out and out.mask.detach()))
    data, _ = naive.batch(0, images=6)
    log = algorithm.train_step(dict(data, plan=plan(0.1)), sgd(algorithm))
    masks = [mask for mask in masks if mask is not None]
    assert len(masks) == len(noise.drawn) == 4
    density = {
        name: float(log[f'density_{name}'])
        for name in ('layer1.0.gate1', 'layer1.1.gate1', 'layer2.0.gate1',
                     'layer2.1.gate1')}
    assert [*density.values()] == pytest.approx([
        float(mask.mean()) for mask in masks])
    assert log['target'] == 0.5
    compute = algorithm.backbone.compute((12, 12))
    counts = torch.stack([mask.sum(1) for mask in masks], 1)
    assert float(log['ratio']) == pytest.approx(
        float(compute.macs(counts).mean()) / compute.total)
    p, s = math.exp(-1), math.sqrt(0.5)
    assert log['bound_low'] == pytest.approx(p * s)
    assert log['bound_high'] == pytest.approx(1 - p * (1 - s))
    assert float(log['spread_gated']) > 0 < float(log['spread_dense'])


def test_the_budget_is_met_when_it_is_all_there_is_to_learn():
    torch.manual_seed(0)
    cfg = model_cfg(
        budget=dict(target=0.3, weight=50.0, expected=True, bound=None))
    cfg['head']['loss'].update(invariance=0.0, variance=0.0, covariance=0.0)
    algorithm = MODELS.build(cfg).train()
    wrapper = sgd(algorithm, lr=0.2)
    data, _ = naive.batch(0, images=16)
    ratios = [
        float(algorithm.train_step(dict(data, plan=plan()), wrapper)['ratio'])
        for _ in range(60)]
    assert abs(ratios[0] - 0.3) > 0.1 and abs(ratios[-1] - 0.3) < 0.01


def test_the_mode_is_restored_and_no_module_keeps_a_tensor():
    algorithm = small_gated()
    data, _ = naive.batch(0, images=4)
    algorithm.train_step(dict(data, plan=plan()), sgd(algorithm))
    for name, module in algorithm.named_modules():
        for key, value in vars(module).items():
            kept = value if isinstance(value, (list, tuple)) else [value]
            assert not any(isinstance(x, torch.Tensor)
                           for x in kept), (f'{name}.{key}')
    assert all(not block.gate1.subnet.gated
               for block in algorithm.backbone.blocks.values())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_trains_gates_with_finite_noise(dtype):
    torch.manual_seed(0)
    algorithm = MODELS.build(model_cfg()).train()
    data, _ = naive.batch(0, images=8)
    batch = MODELS.build(model_cfg()).views(data)
    with torch.autocast('cpu', dtype=dtype), at(algorithm.backbone, 'gated'):
        _, gatings = algorithm.backbone.forward_gated(batch[0])
    for gating in gatings:
        assert gating.mask.dtype == gating.logits.dtype == torch.float32
        assert {*gating.mask.unique().tolist()} == {0.0, 1.0}
    sum(gating.mask.sum() for gating in gatings).backward()
    for block in algorithm.backbone.blocks.values():
        grad = block.gate1.conv2.weight.grad
        assert grad.isfinite().all() and grad.abs().max() > 0


@pytest.mark.parametrize('changes, message', [
    (dict(modes=('gated', )), 'modes are those of two views'),
    (dict(modes=('gated', 'w0.50')), "got ('gated', 'w0.50')"),
    (dict(budget=None), 'a gated view needs a compute budget'),
    (dict(modes=('dense', 'dense')), 'dense views have none'),
    (dict(gate_warmup=1.0), r'gate_warmup is a share of training in \[0, 1\)'),
    (dict(budget=dict(target=0.0)), r'in \(0, 1\], got 0.0'),
    (dict(budget=dict(target=0.5, bound='cubic')), "got 'cubic'"),
    (dict(budget=dict(target=0.5, weight=-1.0)), 'weight is at least 0'),
    (dict(backbone=dict(RESNET, type='us3l_mm.SlimmableResNet_CIFAR')),
     'SlimmableResNet_CIFAR has no gates. Use us3l_mm.GatedResNet'), ],
                         ids=str)
def test_mistakes_are_explained(changes, message):
    message = message.replace("('", r"\('").replace("')", r"'\)")
    with pytest.raises(ValueError, match=message):
        MODELS.build(model_cfg(**changes))


def test_mistakes_of_data_and_plan_are_explained():
    algorithm = small_gated(budget=dict(target=0.03))
    floor = algorithm.backbone.compute((12, 12)).floor
    assert 0.03 < floor < 0.04
    advice = f'target=0.03 .*Use a target between {floor:.4f} and 1'
    with pytest.raises(ValueError, match=advice):
        algorithm.check_image_size((12, 12))
    data, _ = naive.batch(0)
    with pytest.raises(ValueError, match=advice):
        algorithm.train_step(dict(data, plan=plan()), sgd(algorithm))
    with pytest.raises(ValueError, match='got batches of 1 image'):
        algorithm.check_batch(1)
    algorithm.check_batch(2)
    with pytest.raises(ValueError, match=r"plan of \['w1.00', 'gated'\]"):
        algorithm.train_step(dict(data, plan=Plan.fixed(['dense', 'gated'])),
                             sgd(algorithm))


# Several processes -----------------------------------------------------------


def shards(iteration, world_size):
    draw = torch.Generator().manual_seed(iteration)
    views = [
        torch.rand(8, 3, 12, 12, generator=draw, dtype=torch.float64)
        for _ in range(2)]
    return list(zip(*(view.chunk(world_size) for view in views)))


def worker(rank, folder, head):
    world_size = torch.distributed.get_world_size()
    torch.manual_seed(0)
    algorithm = small_gated(head, sync_norms=True, swap_views=True)
    algorithm.views = lambda data: data['views']
    model = MultiPassDistributedDataParallel(algorithm)
    wrapper = sgd(algorithm)
    with pytest.MonkeyPatch.context() as patch:
        for iteration in range(3):
            noise = FixedNoise(patch, iteration)

            def share(like, noise=noise):
                joint = noise(
                    like.new_empty(len(like) * world_size, *like.shape[1:]))
                return joint.chunk(world_size)[rank]

            patch.setattr('us3l_mm.models.layers.gate.logistic_noise', share)
            log = model.train_step(
                dict(views=list(shards(iteration, world_size)[rank]),
                     plan=plan(iteration / 4)), wrapper)
    torch.save((algorithm.state_dict(), float(log['ratio'])),
               os.path.join(folder, f'{world_size}-{rank}.pth'))


@pytest.mark.ddp
@pytest.mark.parametrize('head', HEADS)
def test_two_processes_train_what_one_does(head, tmp_path):
    for world_size in (1, 2):
        run_processes(worker, world_size, tmp_path, head)
    (one, ratio), *two = (torch.load(tmp_path / f'{name}.pth')
                          for name in ('1-0', '2-0', '2-1'))
    for state, same in two:
        assert same == pytest.approx(ratio, abs=1e-12)
        for name, value in one.items():
            torch.testing.assert_close(state[name], value, rtol=1e-8,
                                       atol=1e-8,
                                       msg=lambda t, name=name: f'{name}: {t}')
