# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The slimmable vision transformer against its definition and MMPretrain's."""
import random

import naive
import naive_vit
import pytest
import torch
from algorithms import (model_cfg, sgd, small_algorithm, student_parameters,
                        train_step)
from mmpretrain.models import VisionTransformer
from naive_vit import ARCH
from test_group_reg import LAM, VIT, naive_reg
from test_train_step import check_log, close
from torch import nn

from us3l_mm.evaluation import calibrate
from us3l_mm.export import slice_network
from us3l_mm.models import GroupDecay, SlimmableViT, at_width
from us3l_mm.models.layers import SlimmableLayer
from us3l_mm.registry import MODELS

SLICES = ['input', 'embed']
OUT_TYPES = ['cls_token', 'featmap', 'avg_featmap']
SIZES = dict(img_size=32, patch_size=4)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
rng = random.Random(0)
# Whole heads and parts of one, the ends, ties.
WIDTHS = [1.0, 0.25, 0.375, 0.5] + [rng.uniform(0.25, 1) for _ in range(8)]


def network(slicing, dtype=torch.float32, cls=SlimmableViT, **kwargs):
    """Random in all parameters, none of which begins at zero or one."""
    if cls is SlimmableViT:
        kwargs['slicing'] = slicing
    net = cls(ARCH, **{**SIZES, **kwargs}).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data.copy_(0.3 *
                             torch.randn(parameter.shape, generator=generator))
    return net.eval()


def output(net, images=IMAGES):
    net.eval()  # which is None of MMPretrain's
    with torch.no_grad():
        return net(images.to(net.pos_embed.dtype))[-1]


def plain_arch(narrow):
    return dict(embed_dims=narrow.embed_dims, num_layers=4,
                num_heads=narrow.num_heads,
                feedforward_channels=narrow.feedforward_channels)


# One network, and what it is at full width -----------------------------------


@pytest.mark.parametrize('out_type', OUT_TYPES)
@pytest.mark.parametrize('slicing', SLICES)
def test_the_full_width_is_mmpretrains(slicing, out_type):
    ours = network(slicing, out_type=out_type)
    stock = VisionTransformer(ARCH, out_type=out_type, **SIZES)
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(output(ours), output(stock), rtol=0, atol=1e-6)


@pytest.mark.parametrize('slicing', SLICES)
def test_initial_weights_are_mmpretrains(slicing):
    initial = []
    for cls in (SlimmableViT, VisionTransformer):
        kwargs = dict(slicing=slicing) if cls is SlimmableViT else {}
        torch.manual_seed(3)
        net = cls(ARCH, **SIZES, **kwargs)
        net.init_weights()
        initial.append(net.state_dict())
    assert all(torch.equal(initial[0][k], initial[1][k]) for k in initial[1])


def test_named_architectures_are_those_of_the_paper():
    before = dict(VisionTransformer.arch_zoo)
    for name, dims, heads in (('tiny', 192, 6), ('small', 384, 12),
                              ('base', 768, 12), ('deit-tiny', 192, 3)):
        with torch.device('meta'):
            net = SlimmableViT(name)
        assert (net.embed_dims, net.num_heads, len(net.layers)) == (dims,
                                                                    heads, 12)
        assert net.layers[0].ffn.layers[1].in_features == 4 * dims
    assert VisionTransformer.arch_zoo == before


# Narrow ----------------------------------------------------------------------


@pytest.mark.parametrize('slicing', SLICES)
def test_a_width_is_its_definition_its_slice_and_a_narrow_network(slicing):
    net = network(slicing, torch.float64)
    params = dict(net.state_dict())
    for width in WIDTHS:
        expected = naive_vit.vit(IMAGES.double(), params, width, slicing, 4)
        with at_width(net, width):
            torch.testing.assert_close(output(net), expected, rtol=0,
                                       atol=1e-10)
            ours = output(net)
        sliced = slice_network(net, width)
        assert not any(isinstance(m, SlimmableLayer) for m in sliced.modules())
        assert torch.equal(output(sliced), ours)
        narrow = network(slicing, torch.float64, width=width)
        narrow.load_state_dict(params)  # cuts
        assert torch.equal(output(narrow), ours)
        narrow = network(slicing, torch.float64, width=width)
        narrow.load_state_dict(sliced.state_dict())  # fits as it is
        assert torch.equal(output(narrow), ours)
        assert narrow.out_channels == net.feature_channels(width) == (
            ours.shape[1], )


@pytest.mark.parametrize('out_type', OUT_TYPES)
def test_an_embed_slice_is_a_plain_narrower_transformer(out_type):
    net = network('embed', out_type=out_type)
    for width in WIDTHS:
        sliced = slice_network(net, width)
        stock = VisionTransformer(plain_arch(sliced), out_type=out_type,
                                  **SIZES)
        stock.load_state_dict(sliced.state_dict(), strict=True)
        with at_width(net, width):
            torch.testing.assert_close(output(stock), output(net), rtol=0,
                                       atol=1e-6)
        assert sliced.num_heads == naive_vit.whole_heads(4, width)


def test_query_key_and_value_keep_the_same_heads():
    sliced = slice_network(network('embed'), 0.5).layers[0].attn.qkv
    whole = network('embed').layers[0].attn.qkv
    rows = [*range(16), *range(32, 48), *range(64, 80)]
    assert torch.equal(sliced.weight, whole.weight[rows, :16])
    assert torch.equal(sliced.bias, whole.bias[rows])
    # With narrow inputs, 0.375 reads 16 of 32 features: two heads of eight.
    sliced = slice_network(network('input', divisor=2), 0.375)
    qkv, whole = sliced.layers[0].attn.qkv, network('input').layers[0].attn.qkv
    rows = [*range(16), *range(32, 48), *range(64, 76)]
    assert torch.equal(qkv.weight, whole.weight[rows, :12])
    assert sliced.layers[0].attn.proj.in_features == 12  # one and a half


def test_what_is_dead_changes_neither_results_nor_gradients():
    images = IMAGES.double()
    for width in (0.3, 0.5, 0.7):
        results = []
        for skip in (True, False):
            net = network('input', torch.float64, divisor=2, skip_dead=skip)
            with at_width(net, width):
                y = net(images)[-1]
                (y * y.cos()).sum().backward()
            results.append((y.detach(), {
                n: p.grad for n, p in net.named_parameters()}))
        torch.testing.assert_close(*results, rtol=0, atol=1e-12)
        dead = results[1][1]['layers.0.ffn.layers.0.0.weight']
        c = net.layers[0].ffn.layers[1].active(width)[0]
        assert (dead[c:] == 0).all() and (dead[:c] != 0).any()


# Training --------------------------------------------------------------------


def algorithm_of(slicing, base_method='byol', **kwargs):
    return small_algorithm(
        base_method, backbone=dict(type='us3l_mm.SlimmableViT', arch=ARCH,
                                   slicing=slicing, img_size=12, patch_size=4),
        teacher=dict(momentum=0.1), **kwargs)


def check_iterations(slicing, base_method='byol', features=None, reg=None,
                     mode='sequential'):
    """Two whole iterations: losses, gradients, parameters, teacher."""
    algorithm = algorithm_of(
        slicing, base_method, update_mode=mode,
        feature_distiller=dict(outputs=features) if features else None)
    named = student_parameters(algorithm)
    trainer = naive_vit.NaiveViTTrainer(named, base_method, slicing=slicing,
                                        update_mode=mode, keep=0.9, lr=0.05,
                                        features=features, reg=reg)
    steps = []
    wrapper = sgd(algorithm)
    if reg is not None:
        decay = GroupDecay(named.items(), LAM, 0.1, group_dims=VIT)
        decay.set_ramp(1.0)
        wrapper.regularise(decay)
    wrapper.optimizer.register_step_pre_hook(lambda *_: steps.append({
        name:
        p.grad.clone() for name, p in named.items() if p.grad is not None}))
    for seed, widths in enumerate([[1.0, 0.6, 0.25], [1.0, 0.83, 0.4]]):
        data, views = naive.batch(seed)
        passes = trainer.step(views, widths)
        steps.clear()
        log = train_step(algorithm, data, wrapper, widths)
        if reg is None:  # whose logged value is that of the first pass
            check_log(log, passes)
        grads = [p[-1] for p in passes]
        if trainer.accumulates:
            grads = [{
                k: sum(g[k] for g in grads if k in g)
                for k in set().union(*grads)}]
        for step, expected in zip(steps, grads, strict=True):
            assert step.keys() == expected.keys()
            for name, value in expected.items():
                close(step[name], value, f'gradient of {name}')
    for name, value in trainer.params.items():
        close(named[name].data, value, name)
    for name, value in trainer.teacher.items():
        close(algorithm.teacher.get_parameter(name).data, value, name)


@pytest.mark.parametrize('slicing', SLICES)
@pytest.mark.parametrize('base_method, mode',
                         [('byol', 'sequential'),
                          ('simclr_momentum', 'accumulate'),
                          ('moco_v3', 'sequential')])
def test_training_equals_the_definition(slicing, base_method, mode):
    check_iterations(slicing, base_method, mode=mode)


def test_features_are_distilled_at_the_widths_of_their_heads():
    """2-D features, and a rounding that is not that of multiples of 8."""
    check_iterations('embed', features=[0])


@pytest.mark.parametrize('slicing', SLICES)
def test_groups_are_input_features(slicing):
    check_iterations(
        slicing, reg=lambda params, is_base: naive_reg(params, is_base, LAM,
                                                       0.1, group_dims=VIT))


def test_whole_features_meet_a_whole_projector():
    backbone = dict(type='us3l_mm.SlimmableViT', arch=ARCH, **SIZES)
    for slicing, expected in (('input', 32), ('embed', 16)):
        algorithm = MODELS.build(
            model_cfg(backbone=dict(backbone, slicing=slicing), hid=8, out=8))
        sliced = slice_network(algorithm, 0.5, without_statistics=True)
        assert sliced.neck.fc0.in_features == expected


@pytest.mark.parametrize('slicing', SLICES)
def test_bfloat16_trains_close_to_single_precision(slicing):
    net = network(slicing).train()
    for parameter in net.parameters():
        parameter.data *= 0.3
    gradients = []
    for autocast in (False, True):
        net.zero_grad()
        with at_width(net, 0.6), torch.autocast('cpu', torch.bfloat16,
                                                enabled=autocast):
            net(IMAGES)[-1].float().square().mean().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()


@pytest.mark.parametrize('slicing', SLICES)
def test_attention_runs_on_the_fused_kernel(slicing):
    net = network(slicing, divisor=2)
    with at_width(net, 0.375), torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            acc_events=True) as profile:
        net(IMAGES)[-1].sum().backward()
    names = {event.name for event in profile.events()}
    assert any('_scaled_dot_product_flash_attention' in n for n in names)
    assert not any('softmax' in name for name in names)


@pytest.mark.parametrize('slicing, most', [('input', 0.7), ('embed', 0.3)])
def test_memory_falls_with_the_width(slicing, most):
    net, kept = network(slicing), []  # for the backward pass

    def keep(x):
        kept[-1] += x.numel()
        return x

    for width in (1.0, 0.25):
        kept.append(0)
        with at_width(net, width), \
                torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            net(IMAGES)
    assert kept[1] < most * kept[0]


# Options ---------------------------------------------------------------------


def test_there_is_nothing_to_calibrate():
    assert calibrate(network('embed'), iter(()), [0.25, 1.0]) == 0


def test_fixed_positions_and_a_frozen_patch_embedding():
    net = SlimmableViT(ARCH, positions='sincos', frozen_patch_embed=True,
                       init_style='mocov3', **SIZES)
    before = net.pos_embed.clone()
    net.init_weights()
    assert torch.equal(net.pos_embed, before) and before[0, 0].eq(0).all()
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {
        'pos_embed', 'patch_embed.projection.weight',
        'patch_embed.projection.bias'}
    narrow = SlimmableViT(ARCH, positions='sincos', frozen_patch_embed=True,
                          slicing='embed', width=0.5, **SIZES)
    assert frozen == {
        n for n, p in narrow.named_parameters() if not p.requires_grad}
    # Glorot: sqrt(6 / (fan in + fan out)), query, key and value apart.
    qkv = net.layers[0].attn.qkv
    for weight, fans in ((qkv.weight, 32 +
                          32), (net.patch_embed.projection.weight, 48 + 32),
                         (net.layers[0].ffn.layers[1].weight, 96 + 32)):
        bound = (6 / fans)**0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert qkv.bias.eq(0).all() and net.cls_token.abs().max() < 1e-4


def test_leading_heads_know_all_fixed_positions():
    net = SlimmableViT(ARCH, positions='sincos', slicing='embed', **SIZES)
    for d in (8, 16, 24, 32):
        positions = net.pos_embed[0, 1:, :d]
        distances = torch.cdist(positions, positions)
        distances.fill_diagonal_(9.0)
        assert distances.min() > 0.05
    # The same values as MMPretrain's, in another order.
    usual = SlimmableViT(ARCH, positions='sincos', **SIZES)
    assert torch.equal(
        net.pos_embed.sort(-1).values,
        usual.pos_embed.sort(-1).values)


def test_positions_of_another_image_size_are_resized_on_load():
    full, images = network('embed'), torch.randn(2, 3, 48, 48)
    for width in (1.0, 0.5):
        other = network('embed', img_size=48, width=width)
        other.load_state_dict(full.state_dict())
        sliced = slice_network(full, width)
        stock = VisionTransformer(plain_arch(sliced), img_size=48,
                                  patch_size=4)
        stock.load_state_dict(sliced.state_dict())
        assert other.pos_embed.shape == (1, 145, other.embed_dims)
        torch.testing.assert_close(output(other, images), output(
            stock, images), rtol=0, atol=1e-6)


@pytest.mark.parametrize('slicing', SLICES)
def test_weights_of_another_network_are_an_error(slicing):
    narrow = network(slicing, width=0.25)
    with pytest.raises(
            ValueError,
            match=r'another shape.*\n.*in the file, .* in the model'):
        network(slicing, width=0.5).load_state_dict(narrow.state_dict())
    deeper = dict(ARCH, num_layers=5)
    with pytest.raises(ValueError,
                       match=r'SlimmableViT\(depth=5.*12 are not in the'):
        SlimmableViT(deeper, slicing=slicing, **SIZES).load_state_dict(
            network(slicing).state_dict())


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch='huge-one'), "arch is one of.*'tiny'.*got 'huge-one'"),
    (dict(slicing='output'), r"slicing is one of \('input', 'embed'\)"),
    (dict(positions='rope'), "positions is one of.*got 'rope'"),
    (dict(out_type='raw'), "out_type is one of.*got 'raw'"),
    (dict(layer_scale_init_value=0.1), 'brings its own layers.*leave it out'),
    (dict(norm_cfg=dict(type='BN')), 'layer norms.*got norm_cfg'),
    (dict(arch=dict(ARCH, num_heads=5)), 'a multiple of its 5 heads'),
    (dict(width=0.1), r'outside the range \[0.25, 1\]'),
    (dict(arch=dict(ARCH, embed_dims=24), slicing='embed', positions='sincos'),
     'features of a head are a multiple of 4, got 6'), ], ids=str)
def test_arguments_that_cannot_work_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SlimmableViT(**{'arch': ARCH, **SIZES, **kwargs})


def test_frozen_stages_stay_frozen_in_a_narrow_network():
    narrow = network('embed', width=0.5, frozen_stages=4)
    assert not any(p.requires_grad for p in narrow.parameters())
    assert narrow.train() is narrow
    assert isinstance(narrow.ln1, nn.LayerNorm)
