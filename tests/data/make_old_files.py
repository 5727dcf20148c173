# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files that us3l_mm wrote at commit 9e1d820, and what it computed from them.

This writes ``old_files/files.tar.xz``, the checkpoints and sliced files, and
``old_files/expected.json``, numbers in double precision, and runs at commit
9e1d820 alone. From the root of this repository::

    git worktree add ../before 9e1d820
    make=$PWD/tests/data/make_old_files.py
    (cd ../before && OMP_NUM_THREADS=1 PYTHONPATH=. python $make)

``tests/test_old_files.py`` takes the inputs and the summaries from here.
"""
import copy
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import torch

OUT = Path(__file__).parent / 'old_files'
WIDTHS = (1.0, 0.5, 0.25)
PASSES = ('max', 'rand', 'min')  # of a training step with these widths

# --- inputs and summaries, which do not depend on the version --------------


def images(seed, count=4, size=16):
    """Pixel values (count, 3, size, size) from integer arithmetic, float64."""
    k = torch.arange(count * 3 * size * size) + 7919 * seed
    return (k * (k + 31) % 1009).double().view(count, 3, size, size) / 4


def normalised(seed):
    """The same, standardised roughly."""
    return (images(seed) - 120) / 60


def batch():
    """What a loader gives: two views."""
    return dict(inputs=[images(2), images(3)], data_samples=[None])


def fill(module):
    """Give parameters values that their names and shapes determine."""
    for name, parameter in module.named_parameters():
        k = torch.arange(parameter.numel()) + zlib.crc32(name.encode()) % 9973
        values = (k * (k + 31) % 1009).double().view_as(parameter) / 504 - 1
        if parameter.ndim == 1:
            values = (1 if name.endswith('weight') else 0) + values / 4
        else:
            values = values * 2 / parameter[0].numel()**0.5
        parameter.data.copy_(values)
    return module


def without_drop_path(module):
    """Switch stochastic depth off."""
    for child in module.modules():
        if type(child).__name__ == 'DropPath':
            child.drop_prob = 0.0
    return module


def summary(x):
    """A few numbers about ``x`` that tell order, sign and size."""
    flat = x.detach().double().flatten()
    ramp = torch.linspace(1, 2, len(flat), dtype=torch.float64)
    return dict(shape=list(x.shape), sum=float(flat.sum()), abs=float(
        flat.abs().sum()), ramp=float(flat @ ramp), first=flat[:3].tolist())


def total(tensors):
    """Sums over several tensors, in any order."""
    flat = torch.cat([t.detach().double().flatten() for t in tensors])
    return dict(count=len(flat), sum=float(flat.sum()),
                abs=float(flat.abs().sum()), square=float(flat.square().sum()))


def state(algorithm, optimizer):
    """Totals of the parameters of each part, and of what is learnt."""
    result = {
        name: total(child.parameters())
        for name, child in algorithm.named_children()
        if any(True for _ in child.parameters())}
    states = optimizer.state.values()
    for name in sorted({key for one in states for key in one}):
        result[f'optimizer.{name}'] = total([
            one[name] for one in states if name in one])
    return result


def initial_weights(algorithm):
    """The sum of the absolute weights of each part of the student."""
    return {
        name: total(child.parameters())['abs']
        for name, child in algorithm.named_children()
        if name != 'teacher' and any(True for _ in child.parameters())}


def numbers(log):
    """The log of a training step as plain numbers."""
    return {name: float(value) for name, value in log.items()}


def note(iterations):
    """A hook that appends what each iteration of a run saw and logged."""
    from mmengine.hooks import Hook

    class Note(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None,
                             outputs=None):
            iterations.append(
                dict(
                    images=[
                        int(s.sample_idx) for s in data_batch['data_samples']
                    ], lr=runner.optim_wrapper.get_lr()['lr'][0],
                    log=numbers(outputs)))

    return Note()


# --- networks and runs, with the earlier arguments --------------------------

RESNET = dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18, base_channels=4,
              stem_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1),
              out_indices=(0, 1), divisor=1)
VIT = dict(
    type='us3l_mm.SlimmableViT',
    arch=dict(embed_dims=16, num_layers=1, num_heads=4,
              feedforward_channels=16), img_size=16, patch_size=4)
MOBILENET = dict(type='us3l_mm.SlimmableMobileNetV2', widen_factor=0.05,
                 out_indices=(4, 7), divisor=2)
SMALL = dict(hid_channels=8, out_channels=4)
NORMALISE = dict(mean=[120.0] * 3, std=[60.0] * 3)
GROUP_REG = dict(type='us3l_mm.GroupRegHook', lam=1e-3, alpha=0.05)
VIT_GROUP_REG = dict(GROUP_REG, lam=0.05, group_dims={2: 1}, decoupled=True)
SGD = dict(type='SGD', lr=0.05, momentum=0.9)
ADAMW = dict(type='AdamW', lr=1e-3, weight_decay=0.0)

# Models that are trained for two steps from the values of `fill`.
METHODS = {
    'simclr_momentum':
    dict(base_method='simclr_momentum'),
    'byol':
    dict(base_method='byol'),
    'simsiam':
    dict(base_method='simsiam'),
    'simsiam_momentum':
    dict(base_method='simsiam_momentum'),
    'moco_v3':
    dict(base_method='moco_v3'),
    'byol, shared predictor':
    dict(base_method='byol', share_head=True),
    'byol, mse, from online':
    dict(base_method='byol', base_loss='mse', distill_loss='mse',
         distill_from='online'),
    'simclr_momentum, no distillation':
    dict(base_method='simclr_momentum', distill_from=None),
    'byol, accumulate':
    dict(base_method='byol', update_mode='accumulate'),
    'byol, features':
    dict(base_method='byol', feature_distill=dict(outputs=[0, 1],
                                                  loss_weight=0.5)),
    'simclr_momentum, momentum 0.1, temperature 0.2':
    dict(base_method='simclr_momentum', teacher_momentum=0.1,
         final_teacher_momentum=0.02, base_loss=dict(
             type='us3l_mm.InfoNCELoss', temperature=0.2)), }


def model(backbone=RESNET, base_method='simclr_momentum', **kwargs):
    sizes = dict(neck=SMALL, distill_predictor=dict(hid_channels=8))
    if base_method != 'simclr_momentum':
        sizes['predictor'] = dict(hid_channels=8)
    if kwargs.get('share_head'):
        del sizes['distill_predictor']
    return dict(type='us3l_mm.US3LAlgorithm', base_method=base_method,
                backbone=backbone, data_preprocessor=NORMALISE, **{
                    **sizes,
                    **kwargs})


def run_cfg(work_dir, model, hooks, optimizer=SGD, save=4, size=16, **changes):
    """A training of two epochs of three batches, saved after ``save``."""
    from mmengine.config import Config
    view = [
        dict(type='RandomResizedCrop', scale=size,
             crop_ratio_range=(0.4, 1.0))]
    digits = dict(type='us3l_mm.RenderedDigits', split='train', rendering=dict(
        image_size=16, digit_size=(8, 15)), pipeline=[dict(type='PackInputs')])
    bank = dict(batch_size=20, num_workers=0, sampler=dict(
        type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'), dataset=dict(
                    digits, num_images=40))
    pack = dict(type='PackInputs', meta_keys=('sample_idx', ))
    cfg = Config(
        dict(
            default_scope='mmpretrain', custom_imports=dict(
                imports=['us3l_mm'], allow_failed_imports=False), model=model,
            train_dataloader=dict(
                batch_size=4, num_workers=1, persistent_workers=True,
                sampler=dict(type='us3l_mm.SeededSampler', shuffle=True),
                collate_fn=dict(type='default_collate'), dataset=dict(
                    digits, num_images=12, pipeline=[
                        dict(type='us3l_mm.SeedAugmentation'),
                        dict(type='MultiView', num_views=[2], transforms=[
                            view]), pack
                    ])), knn_bank_dataloader=bank, knn_query_dataloader=bank,
            train_cfg=dict(by_epoch=True, max_epochs=2), optim_wrapper=dict(
                type='OptimWrapper', optimizer=optimizer), param_scheduler=[
                    dict(type='CosineAnnealingLR', eta_min=0.0,
                         by_epoch=False)], custom_hooks=hooks,
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1), checkpoint=dict(
                    type='us3l_mm.AtomicCheckpointHook', by_epoch=False,
                    interval=save),
                exact_resume=dict(type='us3l_mm.ExactResumeHook'),
                non_finite=dict(type='us3l_mm.NonFiniteHook'), collapse=dict(
                    type='us3l_mm.CollapseMonitorHook'), sampler_seed=dict(
                        type='DistSamplerSeedHook')), randomness=dict(
                            seed=0), log_level='ERROR', work_dir=work_dir))
    cfg.merge_from_dict(changes)
    return cfg


def runs():
    """The pre-trainings by name."""
    preflight = dict(type='us3l_mm.PreflightHook')
    sampler = dict(type='us3l_mm.DynamicSamplerHook', num_stages=2)
    fixed = dict(type='us3l_mm.DynamicSamplerHook', widths=list(WIDTHS))
    switchable = dict(RESNET, norm_cfg=dict(type='SwitchableBN',
                                            widths=list(WIDTHS)))
    vit = dict(VIT, slice='embed', positions='sincos', frozen_patch_embed=True,
               init_style='mocov3')
    cfgs = dict(
        resnet=run_cfg('resnet', model(dict(RESNET, drop_path_rate=0.5)),
                       [preflight, sampler, GROUP_REG]), switchable=run_cfg(
                           'switchable', model(switchable, 'byol'),
                           [preflight, fixed, GROUP_REG]), vit=run_cfg(
                               'vit', model(vit, 'moco_v3'),
                               [preflight, sampler, VIT_GROUP_REG], ADAMW))
    for name in ('switchable', 'vit'):  # random states do not compress
        del cfgs[name].default_hooks.exact_resume
    return cfgs


# --- what the earlier code computes ------------------------------------------


def train(cfg, resume=None):
    """Run ``cfg``; with ``resume``, in double precision from that file."""
    from mmengine.runner import Runner
    cfg = copy.deepcopy(cfg)
    if resume is not None:
        cfg.merge_from_dict(
            dict(resume=True, load_from=resume,
                 work_dir=f'{cfg.work_dir}-resumed'))
    runner, iterations = Runner.from_cfg(cfg), []
    runner.register_hook(note(iterations))
    if resume is not None:
        runner.model.double()
    runner.train()
    return runner, iterations


def step(algorithm, optimizer, hook, plans=1, checkpoint=None):
    """Training steps in double precision at three widths."""
    from mmengine.optim import OptimWrapper
    from us3l_mm.models import Plan
    from us3l_mm.registry import HOOKS
    algorithm = without_drop_path(algorithm.double().train())
    wrapper = OptimWrapper(
        getattr(torch.optim, optimizer['type'])(algorithm.parameters(), **{
            k: v for k, v in optimizer.items() if k != 'type'}))
    if checkpoint is not None:
        algorithm.load_state_dict(checkpoint['state_dict'])
        wrapper.load_state_dict(checkpoint['optimizer'])
    runner = SimpleNamespace(model=algorithm, optim_wrapper=wrapper, iter=0,
                             max_iters=4, train_dataloader=range(1))
    hook = HOOKS.build(hook)
    hook.before_train(runner)
    logs = []
    for runner.iter in range(1, 1 + plans):
        hook.before_train_iter(runner, 0)
        algorithm.plan = Plan.of(WIDTHS, progress=runner.iter / 4)
        logs.append(numbers(algorithm.train_step(batch(), wrapper)))
    return dict(logs=logs, after=state(algorithm, wrapper.optimizer))


def method(name):
    """Two training steps of one of METHODS."""
    from us3l_mm.registry import MODELS
    torch.manual_seed(0)
    algorithm = MODELS.build(model(**METHODS[name]))
    algorithm.init_weights()
    initial = initial_weights(algorithm)
    fill(algorithm.double())
    names = [
        name for name, _ in algorithm.named_parameters()
        if not name.startswith(('backbone.', 'teacher.'))]
    result = step(algorithm, SGD, GROUP_REG, plans=2)
    return dict(result, names=names, initial=initial)


@torch.no_grad()
def features(network, widths=WIDTHS):
    """Every output of a backbone at every width."""
    from us3l_mm.apis import at_width
    result = {}
    for width in widths:
        with at_width(network, width):
            result[f'{width:g}'] = [summary(x) for x in network(normalised(1))]
    return result


@torch.no_grad()
def embeddings(backbone, neck, owner):
    """Of projector and backbone in training, at every width."""
    from us3l_mm.apis import at_width
    result = {}
    for width in WIDTHS:
        with at_width(owner, width):
            z, = neck(backbone(normalised(1))[-1:])
        result[f'{width:g}'] = summary(z)
    return result


def pretrained(name, cfg):
    """Train, calibrate, compute."""
    from us3l_mm.apis import load_backbone
    from us3l_mm.export.checkpoint_io import load_weights
    from us3l_mm.registry import MODELS
    train(cfg)
    os.replace(f'{name}/iter_4.pth', f'{name}.pt')
    cfg.dump(f'{name}.py')
    if name == 'resnet':
        tool('evaluate_widths.py', f'{name}.py', f'{name}.pt', '--widths',
             *WIDTHS, '--device', 'cpu', '--out', 'report',
             '--save-checkpoint', f'{name}-calibrated.pt')
    checkpoint = load_weights(f'{name}.pt')
    algorithm = MODELS.build(cfg.model).double().train()
    algorithm.load_state_dict(checkpoint['state_dict'])
    without_drop_path(algorithm)
    teacher = algorithm.teacher
    calibrated = f'{name}-calibrated.pt' if name == 'resnet' else f'{name}.pt'
    result = dict(
        features=features(load_backbone(calibrated).double()),
        embeddings=embeddings(algorithm.backbone, algorithm.neck, [
            algorithm.backbone, algorithm.neck]), teacher=embeddings(
                teacher.backbone, teacher.neck, teacher))
    result['step'] = step(MODELS.build(cfg.model), cfg.optim_wrapper.optimizer,
                          cfg.custom_hooks[-1], checkpoint=checkpoint)
    if name == 'resnet':
        runner, iterations = train(cfg, f'{name}.pt')
        result['resumed'] = dict(
            iterations=iterations, after=state(runner.model,
                                               runner.optim_wrapper.optimizer))
    slice_at_half(calibrated, f'{name}-w050.pt', result['features'])
    return result


def slice_at_half(source, out, expected):
    """Slice width 0.5 with the tool, and load the file that it writes."""
    from us3l_mm.export.checkpoint_io import load_weights
    from us3l_mm.registry import MODELS
    tool('slice_checkpoint.py', source, out, '--width', 0.5, '--input-size',
         16, '--device', 'cpu')
    weights = load_weights(out)['state_dict']
    assert all(key.startswith('backbone.') for key in weights)
    backbone = stored_backbone(source)
    network = MODELS.build(dict(backbone, width=0.5)).double().eval()
    network.load_state_dict({
        key.removeprefix('backbone.'): value
        for key, value in weights.items()})
    with torch.no_grad():
        for x, y in zip(network(normalised(1)), expected['0.5']):
            assert summary(x)['shape'] == y['shape']
            for key in ('sum', 'abs', 'ramp'):
                assert abs(summary(x)[key] - y[key]) < 1e-9 * y['abs']


def stored_backbone(path):
    from us3l_mm.export.architecture import stored_model
    from us3l_mm.export.checkpoint_io import load_weights
    return stored_model(load_weights(path))['backbone']


def tool(name, *args):
    import us3l_mm
    root = Path(us3l_mm.__file__).parents[1]
    subprocess.run([
        sys.executable, '-W', 'ignore',
        str(root / 'tools' / name), *map(str, args)],
                   check=True, stdout=subprocess.DEVNULL, env=dict(
                       os.environ, PYTHONPATH=str(root)))


def bare(name, backbone):
    """A file with a backbone alone, as the converters write it."""
    from us3l_mm.apis import calibrate, load_backbone
    from us3l_mm.registry import MODELS
    network = fill(MODELS.build(backbone))
    for parameter in network.parameters():  # coarse numbers compress
        parameter.data = (parameter.data * 16).round() / 16
    calibrate(network, [normalised(4).float()], WIDTHS)
    for name_, buffer in network.named_buffers():
        if 'running' in name_:
            buffer.copy_(buffer.bfloat16().float())
    torch.save(
        dict(
            state_dict={
                f'backbone.{key}': value
                for key, value in network.state_dict().items()},
            meta=dict(cfg="default_scope = 'mmpretrain'\nmodel = dict(type="
                      f"'us3l_mm.US3LAlgorithm', backbone={backbone!r})\n")),
        f'{name}.pt')
    result = dict(features=features(load_backbone(f'{name}.pt').double()))
    slice_at_half(f'{name}.pt', f'{name}-w050.pt', result['features'])
    return result


def classifier():
    """Linear classifiers of two widths on the calibrated network."""
    from us3l_mm.apis import at_width
    from us3l_mm.export.checkpoint_io import load_weights
    from us3l_mm.registry import MODELS
    backbone = dict(
        RESNET,
        init_cfg=dict(type='Pretrained', checkpoint='resnet-calibrated.pt',
                      prefix='backbone.'))
    cfg = run_cfg(
        'classifier',
        dict(
            type='us3l_mm.AllWidthsClassifier', backbone=backbone,
            neck=dict(type='GlobalAveragePooling'), head=dict(
                type='us3l_mm.SwitchableLinearHead', num_classes=10,
                widths=[1.0, 0.5], topk=(1, 5), loss=dict(
                    type='CrossEntropyLoss',
                    loss_weight=1.0)), data_preprocessor=NORMALISE), [],
        dict(type='SGD', lr=3.0, momentum=0.9))
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='PackInputs', meta_keys=('sample_idx', ))]
    for name in ('non_finite', 'collapse', 'exact_resume'):
        del cfg.default_hooks[name]
    train(cfg)
    os.replace('classifier/iter_4.pth', 'classifier.pt')
    network = MODELS.build(cfg.model).double().eval()
    network.load_state_dict(load_weights('classifier.pt')['state_dict'])
    scores = {}
    for width in (1.0, 0.5):
        with torch.no_grad(), at_width(network, width):
            scores[f'{width:g}'] = summary(network(normalised(1)))
    return dict(scores=scores)


def lines(value, depth=3):
    """JSON with a line for each entry down to ``depth``."""
    if not depth or not isinstance(value, dict):
        return json.dumps(value, separators=(',', ':'))
    return '{\n' + ',\n'.join(f'{json.dumps(key)}: {lines(entry, depth - 1)}'
                              for key, entry in value.items()) + '}'


def main():
    try:
        from us3l_mm.models.selfsup import BASE_METHODS
    except ImportError:
        sys.exit('These files are made by the code at commit 9e1d820.')
    assert sorted(BASE_METHODS) == sorted(name for name in METHODS
                                          if ',' not in name)
    from mmengine.registry import init_default_scope
    torch.set_num_threads(1)
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    OUT.mkdir(exist_ok=True)
    os.chdir(tempfile.mkdtemp())
    expected = {name: pretrained(name, cfg) for name, cfg in runs().items()}
    expected['classifier'] = classifier()
    expected['mobilenet'] = bare('mobilenet', MOBILENET)
    expected['vit-input'] = bare('vit-input',
                                 dict(VIT, slice='input', divisor=4))
    expected['methods'] = {name: method(name) for name in METHODS}
    (OUT / 'expected.json').write_text(lines(expected) + '\n')
    with tarfile.open(OUT / 'files.tar.xz', 'w:xz', preset=9) as archive:
        for path in sorted(Path().glob('*.pt')):
            info = tarfile.TarInfo(path.name)
            info.size = path.stat().st_size
            with open(path, 'rb') as file:
                archive.addfile(info, file)
    for path in sorted(OUT.iterdir()):
        print(f'{path.name}: {path.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
    main()
