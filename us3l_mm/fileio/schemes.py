# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MMEngine's readers of files, replaced by ones that execute nothing.

Whatever MMEngine reads for ``init_cfg``, ``load_from`` and ``resume`` goes
through its ``CheckpointLoader``, and annotation files through its handlers.
Importing this module makes both safe for the whole process.
"""
import os
import os.path as osp
import re
from difflib import get_close_matches
from typing import Callable, Dict
from urllib.parse import urlparse

import torch
import yaml
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend, register_handler
from mmengine.fileio.handlers import PickleHandler, YamlHandler
from mmengine.runner import (CheckpointLoader, get_deprecated_model_names,
                             get_external_models, get_mmcls_models,
                             get_torchvision_models)

try:  # libyaml parses many times as fast
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader

from .reading import CodeInFileError, is_trusted, load_weights

# Of the SHA-256 of a file, in its name, as PyTorch and OpenMMLab put it there.
HASH = re.compile(r'-([0-9a-f]{8,})\.')


def _scheme(*prefixes: str) -> Callable:
    return CheckpointLoader.register_scheme(prefixes, force=True)


# All have MMEngine's second argument, the device. The weights stay on the
# CPU: what loads them copies them to where they belong.
@_scheme('')
def load_from_local(filename: str, map_location=None) -> dict:
    """The checkpoint in a local file."""
    return load_weights(osp.expanduser(filename))


@_scheme('http://', 'https://')
def load_from_http(filename: str, map_location=None) -> dict:
    """The checkpoint at a URL, kept where ``torch.hub`` keeps its files."""
    name = osp.basename(urlparse(filename).path)
    folder = osp.join(torch.hub.get_dir(), 'checkpoints')
    path = osp.join(folder, name)
    if get_rank() == 0:
        _download(filename, path)
    barrier()
    _download(filename, path)  # on machines that do not share the folder
    return load_weights(path)


def _download(url: str, path: str) -> None:
    if osp.isfile(path):
        return
    os.makedirs(osp.dirname(path), exist_ok=True)
    found = HASH.search(osp.basename(path))
    try:
        torch.hub.download_url_to_file(url, path, found and found[1])
    except (OSError, RuntimeError) as error:  # the latter for a wrong hash
        raise OSError(
            f'{url} was not downloaded: {error}. Download it by other means '
            f'to {path}, or name a local file.') from None


@_scheme(r'(\S+\:)?s3://', r'(\S+\:)?petrel://')
def load_from_ceph(filename: str, map_location=None) -> dict:
    """The checkpoint in an object store."""
    backend = get_file_backend(filename, backend_args=dict(backend='petrel'))
    with backend.get_local_path(filename) as path:
        return load_weights(path)


@_scheme('pavi://')
def load_from_pavi(filename: str, map_location=None) -> dict:
    """Nothing: files of this service are not read."""
    raise ValueError(f'{filename} is not read: download it, and name the '
                     'local file.')


@_scheme('torchvision://', 'modelzoo://')
def load_from_torchvision(filename: str, map_location=None) -> dict:
    """A model of torchvision, by its name."""
    return load_from_http(_url_of(filename, get_torchvision_models()))


@_scheme('openmmlab://', 'open-mmlab://')
def load_from_openmmlab(filename: str, map_location=None) -> dict:
    """A model of OpenMMLab's hub, by its name."""
    scheme, name = filename.split('://')
    name = get_deprecated_model_names().get(name, name)
    return CheckpointLoader.load_checkpoint(
        _url_of(f'{scheme}://{name}', get_external_models()))


@_scheme('mmcls://')
def load_from_mmcls(filename: str, map_location=None) -> dict:
    """The backbone of a model of MMClassification, by its name."""
    weights = load_from_http(_url_of(filename, get_mmcls_models()))
    return dict(
        state_dict={
            key.removeprefix('backbone.'): value
            for key, value in weights['state_dict'].items()
            if key.startswith('backbone.')})


def _url_of(filename: str, urls: Dict[str, str]) -> str:
    name = filename.split('://')[1]
    if name not in urls:
        close = get_close_matches(name, urls)
        raise ValueError(f'{filename}: there is no such model. ' +
                         (f'Did you mean {" or ".join(close)}?'
                          if close else 'Name a local file.'))
    return urls[name]


class _Loader(SafeLoader):
    """Plain data, and the tuples that MMEngine writes."""


_Loader.add_constructor(
    'tag:yaml.org,2002:python/tuple',
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))


@register_handler(['yaml', 'yml'])
class SafeYamlHandler(YamlHandler):
    """Reads YAML of plain data; MMEngine's builds any Python object."""

    def load_from_fileobj(self, file, **kwargs):
        try:
            return yaml.load(file, _Loader)
        except yaml.YAMLError as error:
            raise ValueError('A YAML file was not read, as it is damaged or '
                             f'has more than plain data: {error}') from None


@register_handler(['pickle', 'pkl'])
class TrustedPickleHandler(PickleHandler):
    """Reads pickles only in a process that trusts them."""

    def load_from_fileobj(self, file, **kwargs):
        if not is_trusted():
            raise CodeInFileError(
                'A .pkl file was not read: it can execute code of whoever '
                'wrote it. Use a file of JSON, or pass --trust-pickle if you '
                'trust the writer.')
        return super().load_from_fileobj(file, **kwargs)
