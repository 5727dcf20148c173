# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What README and docs/digits.md tell people to type does what it says."""
import importlib
import re
import shlex
from pathlib import Path

import torch
from detection_stack import need_detection
from lives import run_alone

from us3l_mm import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
DIGITS = (ROOT / 'docs' / 'digits.md').read_text()


def blocks(page, language):
    return re.findall(rf'```{language}\n(.*?)```', page, re.S)


def commands(page):
    """Every command of a page, a list of words each."""
    text = '\n'.join(blocks(page, 'shell')).replace('\\\n', ' ')
    return [
        shlex.split(line, comments=True) for line in text.splitlines()
        if line.strip()]


def test_the_two_commands_and_every_file_exist():
    verbs = [words[1] for words in commands(README) if words[0] == 'make']
    assert verbs == ['demo', 'demo-detection', 'test']
    makefile = (ROOT / 'Makefile').read_text()
    for verb in verbs:
        assert re.search(rf'^{verb}:', makefile, re.M)
    paths = re.findall(r'(?:configs|tools|docs|requirements)/[\w./-]+', README)
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path.rstrip('.')).exists(), path


def test_commands_of_the_readme_have_flags_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    parsed = []
    for words in commands(README):
        if words[0] in ('make', 'pip'):
            continue
        tool = (cli.VERBS[words[1]][0]
                if words[0] == 'us3l' else Path(words[1]).stem)
        importlib.import_module(tool).parse_args(words[2:])  # or it exits
        parsed.append(tool)
    assert {'pretrain', 'evaluate_widths', 'slice_checkpoint', 'train'} <= {
        *parsed}


def test_commands_and_python_run(tmp_path):
    """All of them in turn, after one epoch of training instead of 60."""
    need_detection()
    pretraining = [
        'train_cfg.max_epochs=1', 'default_hooks.checkpoint.interval=1',
        'train_dataloader.dataset.num_images=128']
    digits = [
        'knn_bank_dataloader.dataset.num_images=128',
        'knn_query_dataloader.dataset.num_images=64']
    scenes = [
        f'data_root={tmp_path}/scenes',
        *(f'{kind}_dataloader.dataset.scenes.{count}'
          for kind in ('train', 'val', 'test')
          for count in ('num_train=8', 'num_val=3'))]
    ran = []
    for words in commands(DIGITS):
        words = [
            word.replace('work_dirs/demo', str(tmp_path)).replace(
                'epoch_60', 'epoch_1').replace('iter_200', 'iter_2').replace(
                    'data/digit_scenes', f'{tmp_path}/scenes')
            for word in words]
        assert words[0] == 'python'
        tool, extra = words[1].split('/')[-1], []
        if tool == 'train.py':
            extra = pretraining if 'detection' not in words[2] else [
                *scenes, 'train_cfg.max_iters=2']
        elif tool == 'evaluate_widths.py':
            extra = digits
        elif tool in ('test.py', 'detect_image.py'):
            extra = scenes
        elif tool == 'get_flops.py':
            words += ['--input-size', '128']
        # A second --cfg-options would replace the first.
        if extra and '--cfg-options' not in words:
            extra = ['--cfg-options', *extra]
        run_alone(tmp_path / f'{len(ran)}.log', ROOT / words[1], *words[2:],
                  *extra, folder=ROOT)
        ran.append(words[1])
    assert ran == [
        f'tools/{name}.py'
        for name in ('train', 'evaluate_widths', 'slice_checkpoint',
                     'slice_checkpoint', 'train', 'test', 'detect_image',
                     'get_flops')]
    assert list((tmp_path / 'detections').rglob('*.png'))
    assert (tmp_path / 'w050.pth').exists()
    assert (tmp_path / 'small.onnx').exists()

    _, code = blocks(README, 'python')
    images = torch.randn(4, 3, 32, 32)
    scope = dict(batches=[images], images=images)
    exec(code.replace('work_dirs/demo/epoch_60', str(tmp_path / 'epoch_1')),
         scope)
    assert scope['features'].shape == (4, 64)
    torch.testing.assert_close(
        scope['narrow'].eval()(images)[-1].mean(dim=(2, 3)), scope['features'])
