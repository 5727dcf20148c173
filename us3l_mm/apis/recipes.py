# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The configs that come with the package."""
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

import yaml

from us3l_mm.shipped import shipped


@dataclass(frozen=True)
class Recipe:
    """A config of a metafile.

    Attributes:
        name (str): Its name there, which is that of the file.
        path (Path): The config file.
        collection (str): What it belongs to, such as 'US3L'.
        data (str): The data set that it is for.
        epochs (int, optional): The length of the training.
        batch_size (int, optional): Images of all processes in an iteration.
    """

    name: str
    path: Path
    collection: str
    data: str
    epochs: Optional[int]
    batch_size: Optional[int]


def recipes() -> List[Recipe]:
    """All recipes, in the order of the metafiles."""
    configs, found = shipped('configs'), []
    for metafile in sorted(configs.glob('*/metafile.yml')):
        for model in yaml.safe_load(metafile.read_text())['Models']:
            metadata = model.get('Metadata') or {}
            found.append(
                Recipe(model['Name'], configs.parent / model['Config'],
                       model['In Collection'], metadata.get(
                           'Training Data', ''), metadata.get('Epochs'),
                       metadata.get('Batch Size')))
    return found


def config_path(name: str) -> str:
    """The path of a shipped config, such as 'us3l/r50_8xb256.py'."""
    path = shipped('configs') / name
    if not path.is_file():
        raise FileNotFoundError(
            f'There is no config {name} in {osp.relpath(shipped("configs"))}; '
            'us3l list shows all of them.')
    return str(path)
