# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Iterable, Iterator, Optional

from mmengine.dist import get_world_size, is_main_process
from rich.progress import (BarColumn, MofNCompleteColumn, Progress, TextColumn,
                           TimeRemainingColumn)


def count_images(batches: Iterable, description: Optional[str],
                 total: Optional[int] = None) -> Iterator:
    """Yield ``batches`` unchanged while a bar counts their images.

    Args:
        batches (iterable): Batches whose length is a number of images, such
            as tensors (N, ...), or tuples that begin with one.
        description (str, optional): The text before the bar; None for no bar.
            Only the main process shows it.
        total (int, optional): Number of images over all processes. Defaults
            to None, if it is not known.
    """
    if description is None or not is_main_process():
        yield from batches
        return
    columns = (TextColumn('{task.description}'), BarColumn(),
               MofNCompleteColumn(), TextColumn('images'),
               TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(description, total=total)
        for batch in batches:
            yield batch
            images = batch[0] if isinstance(batch, tuple) else batch
            bar.advance(task, len(images) * get_world_size())
