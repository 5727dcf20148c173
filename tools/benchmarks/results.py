# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The file that a benchmark writes its figures to."""
import json
import platform
from datetime import datetime
from pathlib import Path

import torch

from us3l_mm import __version__
from us3l_mm.evaluation.latency import device_name


def save(figures, args):
    """Write ``figures`` to ``args.json``, if it was given.

    With them go the arguments, the versions, the machine and the date.
    """
    if args.json:
        context = dict(
            settings=vars(args), us3l_mm=__version__, torch=str(
                torch.__version__), python=platform.python_version(),
            machine=f'{device_name(args.device)}, {platform.machine()}',
            date=datetime.now().isoformat(timespec='seconds'))
        Path(args.json).write_text(
            json.dumps(dict(figures, **context), indent=2, default=str))
