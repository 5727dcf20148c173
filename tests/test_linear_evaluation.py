# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Linear evaluation and fine-tuning as configs: one width, or all at once."""
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from launched import launched
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample

from us3l_mm.apis.launching import check_all_loaded
from us3l_mm.evaluation import calibrate
from us3l_mm.export import slice_backbone
from us3l_mm.models import (SlimmableResNet_CIFAR, SwitchableLinearHead,
                            at_width)
from us3l_mm.models.backbones.slicing import slice_layers
from us3l_mm.models.layers import SlimmableLayer, Subnet
from us3l_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs/us3l/benchmarks').glob('*.py'))
ALL, ONE, TUNE = (ROOT / f'configs/us3l/benchmarks/{name}_cifar10.py'
                  for name in ('linear-all-widths_resnet18_4xb128-steplr-100e',
                               'linear_resnet18_4xb128-steplr-100e',
                               'finetune_resnet18_4xb128-coslr-100e'))
HALF = {'model.backbone.width': 0.5}
SMALL = dict(base_channels=16, stem_channels=16, divisor=2)
WIDTHS = [1.0, 0.75, 0.5, 0.25]


@pytest.fixture(scope='module')
def full():
    """A slimmable network with statistics of all widths."""
    torch.manual_seed(0)
    network = SlimmableResNet_CIFAR(18, **SMALL)
    calibrate(network, [255 * torch.rand(8, 3, 16, 16)], WIDTHS)
    return network.eval()


@pytest.fixture(scope='module')
def checkpoint(full, tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp('full') / 'full.pth', full)


def save(path, network) -> str:
    torch.save(
        dict(
            state_dict={
                f'backbone.{key}': value
                for key, value in network.state_dict().items()}), path)
    return str(path)


def small(path, work_dir, checkpoint, **changes) -> Config:
    """The config at ``path`` on a few digits of 16 pixels."""
    cfg = Config.fromfile(path)
    digits = dict(type='us3l_mm.RenderedDigits', num_images=16, pipeline=[
        dict(type='PackInputs')], rendering=dict(image_size=16,
                                                 digit_size=(8, 15)))
    for name, split in (('train', 'train'), ('val', 'test'), ('test', 'test')):
        cfg[f'{name}_dataloader'].update(batch_size=8, num_workers=0,
                                         dataset=dict(split=split, **digits))
    cfg.model.backbone.update(SMALL)
    cfg.merge_from_dict({
        'model.backbone.init_cfg.checkpoint': checkpoint,
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'optim_wrapper.optimizer.lr': 0.1,
        'log_level': 'WARNING',
        'work_dir': str(work_dir),
        **changes})
    return cfg


def built(cfg):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor))


def labelled(labels):
    return [DataSample().set_gt_label(int(label)) for label in labels]


# --- the head ---------------------------------------------------------------


def head_with_features(**kwargs):
    head = SwitchableLinearHead(5, [0.5, 1.0], [4, 8], **kwargs)
    head.init_weights()
    return head, {
        Subnet(w): (torch.randn(6, int(8 * w)), ) for w in (0.5, 1.0)}


def test_switchable_head_is_a_linear_head_per_width():
    head, feats = head_with_features()
    samples = labelled(torch.arange(6) % 5)
    losses = head.loss_of_subnets(feats, samples)
    assert list(losses) == ['loss_w1.00', 'loss_w0.50']
    sum(losses.values()).backward()
    for width, channels in ((0.5, 4), (1.0, 8)):
        features = feats[Subnet(width)]
        own, alone = head.linear(width), LinearClsHead(5, channels)
        assert own.bias.eq(0).all() and 0.003 < own.weight.std() < 0.03
        alone.fc.load_state_dict(own.state_dict())
        loss = alone.loss(features, samples)['loss']
        loss.backward()
        assert torch.equal(losses[f'loss_{Subnet(width)}'], loss)
        for name in ('weight', 'bias'):
            assert torch.equal(
                getattr(own, name).grad,
                getattr(alone.fc, name).grad)
        with at_width(head, width):
            assert torch.equal(head(features), alone(features))
        assert torch.equal(head.plain(width)(features), alone(features))


def test_distillation_is_half_of_the_narrow_loss():
    head, feats = head_with_features(distill_weight=0.5)
    labels = torch.arange(6) % 5
    losses = head.loss_of_subnets(feats, labelled(labels))
    wide = head.linear(1.0)(feats[Subnet(1.0)][0])
    narrow = head.linear(0.5)(feats[Subnet(0.5)][0])
    soft = -(wide.softmax(1) * narrow.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses['loss_w1.00'],
                               F.cross_entropy(wide, labels))
    torch.testing.assert_close(losses['loss_w0.50'],
                               (F.cross_entropy(narrow, labels) + soft) / 2)
    losses['loss_w0.50'].backward()
    assert head.linear(1.0).weight.grad is None


def test_head_refuses_what_it_was_not_built_for():
    head, _ = head_with_features()
    with pytest.raises(
            ValueError,
            match=(r"no linear layer for w0.75.*\['w1.00', 'w0.50'\]")):
        with at_width(head, 0.75):
            pass
    assert head.subnet == Subnet(1.0)
    with pytest.raises(ValueError, match=r"no linear layers.*\['w0.50'\]"):
        head.load_state_dict(SwitchableLinearHead(5, [1.0], [8]).state_dict())
    with pytest.raises(ValueError, match='named once'):
        SwitchableLinearHead(5, [0.5, 0.5], [4, 4])
    with pytest.raises(ValueError, match=r'distill_weight is in \[0, 1\]'):
        head_with_features(distill_weight=2)


# --- the configs ------------------------------------------------------------


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_is_what_its_name_says(path):
    cfg = Config.fromfile(path)
    what, network, recipe, data = path.stem.split('_')
    gpus, per_gpu, epochs = map(
        int,
        re.fullmatch(r'(\d+)xb(\d+)-\w+-(\d+)e', recipe).groups())
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr.base_batch_size == gpus * per_gpu
    assert cfg.train_cfg.max_epochs == epochs
    dataset, classes = dict(cifar10=('CIFAR10', 10), in1k=('ImageNet', 1000),
                            cifar100=('CIFAR100', 100), **{
                                'own-images':
                                ('us3l_mm.ImageFolder', 2)})[data]
    assert {
        cfg[f'{name}_dataloader'].dataset.type
        for name in ('train', 'val', 'test')} == {dataset}
    assert cfg.model_wrapper_cfg.type == 'MMDistributedDataParallel'
    backbone = cfg.model.backbone
    assert network == (f'vit-{backbone.arch}'
                       if 'arch' in backbone else f'resnet{backbone.depth}'
                       if 'depth' in backbone else dict(
                           SlimmableMobileNetV2_CIFAR='mobilenet-v2')[
                               backbone.type.removeprefix('us3l_mm.')])
    model = built(cfg)
    assert model.head.num_classes == classes
    frozen = not any(p.requires_grad for p in model.backbone.parameters())
    assert frozen == what.startswith('linear')
    if what.endswith('all-widths'):
        assert model.head.subnets == [Subnet(w) for w in WIDTHS]
    else:
        assert model.backbone.width == 1
    with pytest.raises(ValueError, match='init_cfg.checkpoint=FILE'):
        model.init_weights()


def test_linear_recipes_are_those_of_the_paper():
    cifar = Config.fromfile(ONE)
    assert cifar.optim_wrapper.optimizer == dict(
        type='SGD', lr=30.0, momentum=0.9, weight_decay=0.0)
    assert cifar.param_scheduler[0].milestones == [60, 80]
    assert cifar.train_dataloader.dataset.pipeline[1].crop_ratio_range == (0.8,
                                                                           1.0)
    [path] = [p for p in CONFIGS if p.stem.startswith('linear_resnet50')]
    imagenet = Config.fromfile(path).optim_wrapper.optimizer
    assert (imagenet.type, imagenet.lr) == ('LARS', 0.8)


@pytest.mark.parametrize('width', [0.3, 0.625])
def test_one_edit_changes_the_width(width, checkpoint, tmp_path):
    model = built(
        small(ONE, tmp_path, checkpoint, **{'model.backbone.width': width}))
    assert model.head.in_channels == model.backbone.out_channels[-1]
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_bad_configs_are_refused_before_training(full, checkpoint, tmp_path):

    def init(path, file=checkpoint, **changes):
        built(small(path, tmp_path, file, **changes)).init_weights()

    with pytest.raises(ValueError, match=r'have 64 channels.*in_channels=512'):
        init(ONE, **HALF, **{'model.head.in_channels': 512})
    with pytest.raises(ValueError, match='backbone of one width'):
        init(ONE, **{'model.backbone.width': None})
    for path in (ONE, ALL):
        with pytest.raises(ValueError, match='outside the range'):
            init(
                path, **{
                    'model.backbone.width': 0.1,
                    'model.head.widths': [0.1]} if path == ONE else {
                        'model.head.widths': [0.1]})
        with pytest.raises(ValueError, match='would stay random'):
            init(path, **{'model.backbone.init_cfg': None})
        with pytest.raises(FileNotFoundError, match='nowhere.pth'):
            init(path, 'nowhere.pth')
    bare = SlimmableResNet_CIFAR(18, **SMALL)
    file = save(tmp_path / 'bare.pth', bare)
    for path in (ONE, ALL):
        with pytest.raises(
                ValueError, match='no batch-norm statistics for w1.00.*'
                'evaluate_widths.py'):
            init(path, file)


# --- runs -------------------------------------------------------------------


def tensors(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def run(cfg):
    """Train; the backbone before and after, and the runner."""
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = tensors(runner.model.backbone)
    runner.train()
    return runner, before


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope='module')
def trained(checkpoint, tmp_path_factory):
    """A run of all widths: runner, backbone before it, hook calls."""
    calls, call_hook = [], Runner.call_hook

    def counted(self, name, **kwargs):
        calls.append(name)
        return call_hook(self, name, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, 'call_hook', counted)
        runner, before = run(
            small(
                ALL, tmp_path_factory.mktemp('all'), checkpoint, **{
                    'default_hooks.checkpoint.save_best': [
                        'accuracy/top1_w1.00', 'accuracy/top1_w0.50']}))
    return runner, before, calls


def test_all_widths_train_and_the_backbone_does_not(trained):
    runner, before, calls = trained
    model = runner.model
    assert runner.iter == 2
    assert equal(before, tensors(model.backbone))
    model.train()
    assert not any(m.training for m in model.backbone.modules())
    assert all(m.subnet.is_full for m in model.modules()
               if isinstance(m, SlimmableLayer))
    for width in WIDTHS:
        assert model.head.linear(width).bias.ne(0).all()
    # Two batches, each once, whatever the number of widths
    for stage in ('', '_epoch'):
        assert calls.count(f'before_val{stage}') == 1
        assert calls.count(f'after_val{stage}') == 1
    assert calls.count('before_val_iter') == calls.count('after_val_iter') == 2


def test_metrics_are_named_and_kept_per_width(trained):
    runner, *_ = trained
    work_dir = Path(runner.work_dir)
    for width in ('1.00', '0.50'):
        assert list(work_dir.glob(f'best_accuracy_top1_w{width}_epoch_1.pth'))
    for width in ('1.00', '0.75', '0.50', '0.25'):
        assert runner.message_hub.get_scalar(f'val/accuracy/top5_w{width}')
    [file] = work_dir.glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in file.read_text().splitlines()]
    assert 'accuracy/top1_w0.50' in logged[-1]


def test_the_metric_of_a_width_is_that_of_the_sliced_network(trained, full):
    runner, *_ = trained
    metrics = runner.val_loop.run()
    batches = list(runner.val_dataloader)
    for width in WIDTHS:
        plain = SlimmableResNet_CIFAR(18, width=width, **SMALL)
        plain.load_state_dict(slice_backbone(full, width))
        head = runner.model.head.plain(width)
        hits = []
        for batch in batches:
            images = runner.model.data_preprocessor(batch)['inputs']
            with torch.no_grad():
                scores = head((plain.eval()(images)[-1].mean((2, 3)), ))
            labels = torch.cat([s.gt_label for s in batch['data_samples']])
            hits.append(scores.argmax(1) == labels)
        expected = 100 * torch.cat(hits).float().mean().item()
        assert metrics[f'accuracy/top1_{Subnet(width)}'] == pytest.approx(
            expected)


def test_names_that_no_validation_gives_are_refused(checkpoint, tmp_path):
    for name, widths in (('accuracy/top1', WIDTHS), ('accuracy/top1_w0.75', [
            1.0, 0.5])):
        runner = Runner.from_cfg(
            small(
                ALL, tmp_path, checkpoint, **{
                    'default_hooks.checkpoint.save_best': name,
                    'model.head.widths': widths}))
        with pytest.raises(ValueError,
                           match=f"'_w1.00'.*got save_best='{name}'"):
            runner.train()
    with pytest.raises(ValueError, match='no linear layer for w0.30'):
        Runner.from_cfg(
            small(ALL, tmp_path, checkpoint, **{'val_cfg.widths':
                                                [0.3]})).train()


def test_a_failing_width_leaves_the_network_as_it_was(trained, monkeypatch):
    model = trained[0].model

    def fail(*args, **kwargs):
        raise RuntimeError('stopped')

    monkeypatch.setattr(model.head, 'predict', fail)
    loop = trained[0].val_loop
    loop.evaluators = {
        w: loop.evaluators[w] for w in map(Subnet, reversed(WIDTHS))}
    with pytest.raises(RuntimeError, match='stopped'):
        loop.run()
    assert model.head.subnet == model.backbone.conv1.subnet == Subnet(1.0)


def test_a_cut_classifier_is_an_ordinary_one(trained):
    runner, *_ = trained
    images = 255 * torch.rand(4, 3, 16, 16)
    model = built(runner.cfg).eval()
    model.load_state_dict(runner.model.state_dict())
    with torch.no_grad():
        with at_width(model, 0.5):
            expected = model(images)
        slice_layers(model, 0.5)
        assert isinstance(model.head, LinearClsHead)
        torch.testing.assert_close(model(images), expected)


def test_one_width_trains_its_classifier_alone(checkpoint, full, tmp_path):
    runner, before = run(small(ONE, tmp_path, checkpoint, **HALF))
    after = tensors(runner.model.backbone)
    assert equal(before, after)
    assert equal(before, slice_backbone(full, 0.5))
    assert runner.model.head.fc.bias.ne(0).all()
    assert list(tmp_path.glob('best_accuracy_top1_epoch_1.pth'))


def test_fine_tuning_trains_every_layer(checkpoint, tmp_path):
    runner, before = run(small(TUNE, tmp_path, checkpoint, **HALF))
    after = tensors(runner.model.backbone)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_the_test_launcher_gives_the_metrics_of_validation(trained, tmp_path):
    runner, *_ = trained
    metrics = runner.val_loop.run()
    runner.cfg.dump(str(tmp_path / 'config.py'))
    weights = str(tmp_path / 'trained.pth')
    torch.save(dict(state_dict=runner.model.state_dict()), weights)
    out = tmp_path / 'metrics.json'
    code, output = launched(tmp_path, ROOT / 'tools/dist_test.sh',
                            tmp_path / 'config.py', weights, 1, '--out', out,
                            '--out-item', 'metrics', '--work-dir',
                            tmp_path / 'tested')
    assert code == 0, output[-3000:]
    assert json.loads(out.read_text()) == pytest.approx(metrics)


def test_weights_without_a_head_are_not_tested(trained, checkpoint):
    with pytest.raises(
            ValueError, match='of its 68 tensors 8 are not in the '
            'file(.|\n)*head.linears'):
        check_all_loaded(trained[0], checkpoint)
