# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Labels train a network of several widths."""
import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from small_run import small_cfg

from us3l_mm.engine import MultiPassOptimWrapper
from us3l_mm.export import slice_network
from us3l_mm.models import SlimmableClassifier, Subnet, at
from us3l_mm.registry import MODELS

WIDTHS = [1.0, 0.5]
LABELS = torch.tensor([0, 3, 2, 1, 3, 0])
SMALL = dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=20, base_channels=16,
             stem_channels=16)
PREPROCESSOR = dict(type='mmpretrain.ClsDataPreprocessor', mean=[120.] * 3,
                    std=[60.] * 3, num_classes=4)


def model_cfg(widths=WIDTHS, **changes) -> dict:
    return dict(
        type='us3l_mm.SlimmableClassifier', backbone=dict(
            SMALL, norm_cfg=dict(type='SwitchableBN', subnets=widths)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'), head=dict(
            type='us3l_mm.SwitchableLinearHead', num_classes=4, widths=widths,
            shared=True,
            loss=dict(type='mmpretrain.CrossEntropyLoss'), topk=(1, ),
            **changes.pop('head',
                          {})), data_preprocessor=PREPROCESSOR, **changes)


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=generator)
    return dict(
        inputs=[*images.to(torch.uint8)], data_samples=[
            DataSample().set_gt_label(label) for label in LABELS])


def wrapper_of(model, lr=0.1):
    return MultiPassOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=lr))


def parameters(model) -> dict:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_step_is_that_of_the_sum_of_the_losses():
    model = MODELS.build(model_cfg()).double().train()
    before = parameters(model)
    x = (torch.stack(batch()['inputs']).double() - 120) / 60
    total = 0
    for width in WIDTHS:
        with at(model.backbone, width):
            maps = model.backbone(x)[-1]
        feats = maps.mean((2, 3))
        weight = model.head.linear(1.0).weight[:, :feats.shape[1]]
        scores = feats @ weight.T + model.head.linear(1.0).bias
        total = total + F.cross_entropy(scores, LABELS)
    names = [*before]
    gradients = torch.autograd.grad(total, [*model.parameters()])
    log = model.train_step(batch(), wrapper_of(model))
    assert float(log['loss']) == pytest.approx(total.item(), abs=1e-9)
    assert float(log['loss']) == pytest.approx(
        float(log['loss_w1.00'] + log['loss_w0.50']), abs=1e-12)
    for name, gradient, p in zip(names, gradients, model.parameters()):
        torch.testing.assert_close(p.data, before[name] - 0.1 * gradient,
                                   rtol=0, atol=1e-9, msg=name)


def test_a_single_width_is_the_classifier_of_mmpretrain():
    ours = MODELS.build(model_cfg([1.0])).double().train()
    plain = ImageClassifier(slice_network(ours.backbone, 1.0), ours.neck,
                            ours.head.plain(1.0),
                            data_preprocessor=PREPROCESSOR).double().train()
    for _ in range(2):
        losses = [
            model.train_step(batch(), wrapper_of(model))['loss'].item()
            for model in (ours, plain)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-12)


def test_sequential_updates_step_after_each_width():
    model = MODELS.build(model_cfg(update_mode='sequential')).double().train()
    one = MODELS.build(model_cfg(update_mode='sequential')).double().train()
    one.load_state_dict(model.state_dict())
    model.train_step(batch(), wrapper_of(model))
    for width in WIDTHS:
        with at(one, width):
            data = one.data_preprocessor(batch(), training=True)
            loss = one.loss(data['inputs'], data['data_samples'])['loss']
        params = [*one.parameters()]
        for p, gradient in zip(
                params, torch.autograd.grad(loss, params, allow_unused=True)):
            if gradient is not None:
                p.data -= 0.1 * gradient
    for name, value in parameters(model).items():
        torch.testing.assert_close(value,
                                   parameters(one)[name], rtol=0, atol=1e-9)


def test_a_run_reports_the_accuracy_of_each_width(tmp_path):
    cfg = small_cfg(
        tmp_path, **{
            'train_cfg.max_epochs': 1,
            'default_hooks.sampler.widths': WIDTHS})
    cfg.default_hooks.pop('group_reg')
    cfg.model = model_cfg()
    cfg.model['data_preprocessor'] = dict(PREPROCESSOR, num_classes=10)
    cfg.model['head']['num_classes'] = 10
    cfg.train_dataloader.dataset.pipeline = [dict(type='PackInputs')]
    cfg.val_dataloader = dict(
        cfg.train_dataloader, sampler=dict(type='DefaultSampler',
                                           shuffle=False))
    cfg.val_evaluator = dict(type='Accuracy', topk=(1, ))
    cfg.val_cfg = dict(type='us3l_mm.WidthValLoop')
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert {'accuracy/top1_w1.00', 'accuracy/top1_w0.50'} <= {
        *runner.val_loop.run()}
    assert (tmp_path / 'epoch_1.pth').exists()


@pytest.mark.parametrize('changes, words', [
    (dict(update_mode='joint'), "got 'joint'"),
    (dict(head=dict(distill_weight=0.5)), 'distill_weight=0.5. Remove it')],
                         ids=str)
def test_what_cannot_train_is_refused(changes, words):
    cfg = model_cfg(**changes)
    with pytest.raises(ValueError, match=words):
        MODELS.build(cfg)


def test_a_loss_needs_a_pass():
    model = MODELS.build(model_cfg())
    assert isinstance(model, SlimmableClassifier)
    with pytest.raises(RuntimeError, match='MultiPassDistributedDataParallel'):
        model(torch.zeros(2, 3, 8, 8), mode='loss')
    assert model.head.subnets == [Subnet.of(w) for w in WIDTHS]
