# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A config for a folder of one's own images, from their number and size."""
import os
import os.path as osp
from dataclasses import dataclass
from statistics import median
from typing import Any, Dict, Iterator, List, Optional, Tuple

from mmcv import imread
from mmengine.config import Config
from PIL import Image, UnidentifiedImageError

from us3l_mm.datasets import ImageFolder
from us3l_mm.fileio import find_checkpoint, write_atomically
from . import launching
from .launching.config import READ, change_config, load_config
from .recipes import config_path

# Of all recipes here, for the images and how they are augmented.
DATA = 'us3l/us3l_resnet18_1xb64-coslr-400e_own-images.py'
LOADERS = ('train_dataloader', 'knn_bank_dataloader', 'knn_query_dataloader')
RECIPES = {
    ('us3l', 'resnet'): DATA,
    ('us3l', 'mobilenet_v2'):
    'us3l/us3l_mobilenet-v2_4xb128-coslr-400e_cifar10.py',
    ('us3l', 'vit'): 'us3l/us3l_vit-tiny_8xb64-coslr-300e_cifar10.py',
    ('slimclr', 'resnet'):
    'slimclr/slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py',
    ('gated', 'resnet'): 'gated/gated_resnet18_2xb256-coslr-500e_cifar10.py', }
METHODS = sorted({method for method, _ in RECIPES})
# Family, channels behind the network, and arguments of the backbone.
ARCHS: Dict[str, Tuple[str, int, dict]] = {
    'resnet18': ('resnet', 512, dict(depth=18)),
    'resnet34': ('resnet', 512, dict(depth=34)),
    'resnet50': ('resnet', 2048, dict(depth=50)),
    'mobilenet_v2': ('mobilenet_v2', 1280, {}),
    'vit_tiny': ('vit', 192, dict(arch='tiny')),
    'vit_small': ('vit', 384, dict(arch='small')), }
IMAGE_SIZES = (32, 64, 96, 128, 160, 224)
# Up to this size, the first convolution keeps the resolution.
SMALL = 64
FEWEST = 16
# Up to this size of the images, views are made in batches: it is measured to
# be faster (tools/benchmarks/augmentation.py).
BATCHED = 96
# Headers of so many files tell how large the images are.
SAMPLE = 500
# Images that training looks at, at 400 epochs at most and 100 at least.
VIEWS = 4_000_000
QUEUE = 4096
# The name of the config in the folder of a run.
CONFIG = 'pretrain.py'


@dataclass(frozen=True)
class Images:
    """What is known about a folder of images.

    Attributes:
        folder (str): The folder.
        count (int): The number of images that can be read.
        skipped (dict[str, str]): The other files, and why.
        side (int): The median of their shorter sides in pixels.
        longest (int, optional): Their longer side in pixels, if all those
            that were measured have the same height and the same width.
            Defaults to None.
    """

    folder: str
    count: int
    skipped: Dict[str, str]
    side: int
    longest: Optional[int] = None


def look_at(folder: str) -> Images:
    """Check the images of ``folder`` and measure some of them.

    Raises:
        FileNotFoundError, NotADirectoryError: If there is no such folder.
        ValueError: If there are too few images to learn from.
    """
    dataset = ImageFolder(data_root=folder, with_label=False, pipeline=[])
    count = len(dataset)
    if count < FEWEST:
        raise ValueError(
            f'{folder} has {count} image{"s" * (count > 1)} that can be read. '
            f'At least {FEWEST} are needed for a batch with statistics, and '
            'some hundred to learn something.')
    step = -(-count // SAMPLE)
    sizes = [
        _size(dataset.get_data_info(i)['img_path'])
        for i in range(0, count, step)]
    side = int(median(map(min, sizes)))
    longest = max(sizes[0]) if len({*sizes}) == 1 else None
    return Images(folder, count, dataset.skipped, side, longest)


def _size(path: str) -> Tuple[int, int]:
    """The two sides of an image in pixels."""
    try:
        with Image.open(path) as image:  # reads no more than the header
            return image.size
    except UnidentifiedImageError:  # one of the formats of OpenCV alone
        return imread(path).shape[:2]


@dataclass(frozen=True)
class Choice:
    """The settings of a pre-training on one's own images.

    Attributes:
        method (str): One of ``METHODS``.
        arch (str): One of ``ARCHS``.
        image_size (int): Side of a crop in pixels.
        batch_size (int): Images in an iteration.
        epochs (int): Length of the training.
    """

    method: str
    arch: str
    image_size: int
    batch_size: int
    epochs: int


def choose(images: Images, method: str = 'us3l', arch: Optional[str] = None,
           image_size: Optional[int] = None, epochs: Optional[int] = None,
           batch_size: Optional[int] = None) -> Choice:
    """Settings that suit ``images``; those that are given are kept.

    * Crops have the largest of the usual sizes that is not above the shorter
      side of most images.
    * A ResNet-18 learns from up to 200,000 images, a ResNet-50 from more.
    * An epoch has at least four batches, of at most 128 images, or 64 if
      crops have more than 128 pixels.
    * Training looks at 4 million images, in 100 to 400 epochs.

    Raises:
        ValueError: If a method has no such network, or a value is out of
            range.
    """
    if method not in METHODS:
        raise ValueError(f'A method is one of {METHODS}, got {method!r}.')
    if arch is None:
        arch = 'resnet18' if images.count <= 200_000 else 'resnet50'
    if arch not in ARCHS:
        raise ValueError(f'A network is one of {[*ARCHS]}, got {arch!r}.')
    if (method, ARCHS[arch][0]) not in RECIPES:
        known = [a for a in ARCHS if (method, ARCHS[a][0]) in RECIPES]
        raise ValueError(f'{method} trains {known}, got {arch!r}; us3l trains '
                         'all networks.')
    if image_size is None:
        image_size = max([size for size in IMAGE_SIZES if size <= images.side],
                         default=IMAGE_SIZES[0])
    if image_size < 32 or image_size % 32:
        raise ValueError('The image size is a multiple of 32 pixels, such as '
                         f'{list(IMAGE_SIZES)}, got {image_size}.')
    if epochs is None:
        epochs = min(max(VIEWS // images.count, 100), 400)
    if epochs < 1:
        raise ValueError(f'The number of epochs is at least 1, got {epochs}.')
    if batch_size is None:
        batch_size, largest = 4, 128 if image_size <= 128 else 64
        while batch_size < largest and batch_size * 8 <= images.count:
            batch_size *= 2
    if not 2 <= batch_size <= images.count:
        raise ValueError('The batch size is from 2 to the number of images, '
                         f'{images.count}, got {batch_size}.')
    return Choice(method, arch, image_size, batch_size, epochs)


def own_config(images: Images, choice: Choice) -> Config:
    """The config of ``choice``: a recipe, on the images of the folder.

    The learning rate is that of the recipe, scaled with the batch size.
    """
    family, channels, arguments = ARCHS[choice.arch]
    recipe = load_config(config_path(RECIPES[choice.method, family]))
    data = load_config(config_path(DATA))
    for key in ('data_preprocessor', *LOADERS):
        recipe[key] = data[key]
    recipe.default_hooks.images = data.default_hooks.images
    recipe.default_hooks.pop('knn', None)  # there are no labels
    recipe.default_hooks.pop('augmentation', None)
    if images.longest is not None and images.longest <= BATCHED:
        recipe.default_hooks.augmentation = dict(
            type='us3l_mm.BatchAugmentationHook')
    for transform in _dicts([recipe[key] for key in LOADERS]):
        _set_size(transform, choice.image_size)
    for key in LOADERS:
        loader = recipe[key]
        loader.batch_size = choice.batch_size
        loader.num_workers = min(os.cpu_count() or 1, 8)
        loader.dataset.data_root = images.folder
    backbone = recipe.model.backbone
    backbone.update(arguments)
    if family == 'vit':
        backbone.update(img_size=choice.image_size,
                        patch_size=_patch_size(choice.image_size))
    else:
        backbone.type = _type_at(backbone.type, choice.image_size)
        if choice.image_size > SMALL:
            backbone.pop('stem_padding', None)
    recipe.model.neck.in_channels = channels
    for name, value in _changes(choice).items():
        recipe.merge_from_dict({name: value})
    scale = choice.batch_size / recipe.auto_scale_lr.base_batch_size
    recipe.optim_wrapper.optimizer.lr *= scale
    recipe.auto_scale_lr.base_batch_size = choice.batch_size
    _set_epochs(recipe, choice.epochs)
    return recipe


def _dicts(value: Any) -> Iterator[dict]:
    """All dicts in nested dicts and lists."""
    if isinstance(value, dict):
        yield value
        value = [*value.values()]
    if isinstance(value, (list, tuple)):
        for child in value:
            yield from _dicts(child)


def _set_size(transform: Dict[str, Any], size: int) -> None:
    """Let a transform of the data config put out images of ``size``."""
    kind = transform.get('type')
    if kind in ('RandomResizedCrop', 'ResizeEdge'):
        transform['scale'] = size
    elif kind == 'CenterCrop':
        transform['crop_size'] = size
    if kind == 'GaussianBlur' and size <= SMALL:
        transform['prob'] = 0.0  # the recipes for small images have none


def _set_epochs(recipe: Config, epochs: int) -> None:
    """Train for ``epochs``, of which a tenth at most is warm-up."""
    before, recipe.train_cfg.max_epochs = recipe.train_cfg.max_epochs, epochs
    schedule, warmup = [], 0
    for part in recipe.param_scheduler:
        if part.type == 'LinearLR':
            warmup = part.end = min(part.end, epochs // 10)
            if not warmup:
                continue
        else:  # a cosine, up to the end of the training
            part.update(begin=warmup)
            for name in ('end', 'T_max'):
                part.pop(name, None)
        schedule.append(part)
    recipe.param_scheduler = schedule
    decay = recipe.default_hooks.get('group_reg')
    if decay:
        decay.warmup_epochs = decay.warmup_epochs * epochs // before


def _type_at(kind: str, image_size: int) -> str:
    """The variant of a network with the stem for images of this size."""
    plain = kind.removesuffix('_CIFAR')
    return f'{plain}_CIFAR' if image_size <= SMALL else plain


def _patch_size(image_size: int) -> int:
    """The largest patch of which at least eight fit into a row."""
    return max(p for p in (4, 8, 16)
               if image_size % p == 0 and image_size // p >= 8)


def _changes(choice: Choice) -> Dict[str, Any]:
    """What the length and the batch change in the recipe of a method."""
    changes: Dict[str, Any] = {}
    if choice.method == 'slimclr':
        # The queue holds whole batches.
        changes['model.head.queue_length'] = min(QUEUE, 16 * choice.batch_size)
    return changes


def describe(images: Images, choice: Choice, config: Config) -> List[str]:
    """Lines that say what was chosen, and how to change it."""
    steps = images.count // choice.batch_size
    skipped = (f', {len(images.skipped):,} other files are skipped'
               if images.skipped else '')
    stem = ('keeps the resolution'
            if choice.image_size <= SMALL else 'reduces it to a quarter')
    if ARCHS[choice.arch][0] == 'vit':
        stem = f'makes patches of {config.model.backbone.patch_size} pixels'
    rate = config.optim_wrapper.optimizer.lr
    return [
        f'{images.folder}: {images.count:,} images, the shorter side mostly '
        f'about {images.side} pixels{skipped}.',
        f'Method {choice.method} (--method), network {choice.arch} (--arch), '
        f'crops of {choice.image_size} pixels (--image-size); the first layer '
        f'{stem}.',
        f'{choice.epochs} epochs (--epochs) of {steps} iterations '
        f'with {choice.batch_size} images (--batch-size); learning rate '
        f'{rate:g} (--cfg-options optim_wrapper.optimizer.lr=...).', ]


def write_config(images: str, out: str, method: str = 'us3l',
                 arch: Optional[str] = None, image_size: Optional[int] = None,
                 epochs: Optional[int] = None,
                 batch_size: Optional[int] = None, resume: bool = False,
                 cfg_options: Optional[dict] = None) -> str:
    """Write the config of a pre-training into its folder, and say what it is.

    Arguments and errors are those of :func:`pretrain`.

    Returns:
        str: The path of the config.
    """
    _check_run(out, resume)
    found = look_at(osp.abspath(images))
    choice = choose(found, method, arch, image_size, epochs, batch_size)
    path = osp.join(out, CONFIG)
    config = change_config(own_config(found, choice), path, cfg_options,
                           {*READ, *LOADERS})
    write_atomically(path, config.dump)
    print(*describe(found, choice, config), f'Config: {path}', sep='\n')
    return path


def _check_run(out: str, resume: bool) -> None:
    """Refuse to overwrite a run."""
    if osp.exists(out) and not osp.isdir(out):
        raise NotADirectoryError(f'{out} is a file. Name a folder.')
    found = osp.isdir(out) and find_checkpoint(out)
    if found and not resume:
        raise FileExistsError(
            f'{out} holds a run already, up to {osp.basename(found)}. Resume '
            'it (--resume), or choose another folder (--out).')


def pretrain(images: str, out: str, method: str = 'us3l',
             arch: Optional[str] = None, image_size: Optional[int] = None,
             epochs: Optional[int] = None, batch_size: Optional[int] = None,
             resume: bool = False, amp: bool = False,
             cfg_options: Optional[dict] = None) -> str:
    """Pre-train on a folder of images, without labels.

    What is None is chosen by the number and the size of the images, see
    :func:`choose`.

    Args:
        images (str): The folder; images may be at any depth of it.
        out (str): The folder of config, logs and checkpoints.
        method (str): 'us3l' for any width, 'slimclr' for a list of widths
            without calibration, 'gated' for a network that runs dense or
            gated. Defaults to 'us3l'.
        arch (str, optional): A network, one of ``ARCHS``.
        image_size (int, optional): Side of a crop in pixels, a multiple of 32.
        epochs (int, optional): Length of the training.
        batch_size (int, optional): Images in an iteration.
        resume (bool): Whether to go on with the run in ``out``. Defaults to
            False.
        amp (bool): Whether to train in mixed precision. Defaults to False.
        cfg_options (dict, optional): Other changes to the config, by dotted
            keys.

    Returns:
        str: The last checkpoint.

    Raises:
        OSError, TypeError, ValueError: With what is wrong and what to do,
            before training.
    """
    path = write_config(images, out, method, arch, image_size, epochs,
                        batch_size, resume, cfg_options)
    config = load_config(path)
    launching.set_up_training(config, path, out, 'auto' if resume else None,
                              amp)
    launching.check_training(config)
    with launching.nothing_left_behind(config) as begun:
        launching.train(config, begun)
    checkpoint = find_checkpoint(out)
    assert checkpoint is not None  # or training would have raised
    return checkpoint
