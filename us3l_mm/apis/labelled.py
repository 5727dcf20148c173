# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from mmengine.config import Config

from us3l_mm.evaluation.data import BANK, QUERY


def use_labelled(config: Config, folder: str) -> None:
    """Let an evaluation by ``config`` classify the images of ``folder``.

    The folder has one folder of images for each class. One image in five, by a
    fixed seed, is a query; the others are the bank.

    Raises:
        ValueError: If the config has no images for evaluation.
    """
    for key, split in ((BANK, 'train'), (QUERY, 'val')):
        if key not in config:
            raise ValueError(f'The config of the run has no {key}, whose '
                             'pipeline the labelled images would take.')
        config[key].dataset = dict(type='us3l_mm.ImageFolder',
                                   data_root=folder, split=split,
                                   pipeline=config[key].dataset.pipeline)


def has_labels(config: Config) -> bool:
    """False if ``config`` says that the images of its evaluation have none.
    """
    dataset = config.get(QUERY, {}).get('dataset', {})
    return dataset.get('with_label', True)
