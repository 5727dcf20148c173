# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The text of a config is formatted once, and not for every checkpoint.

MMEngine's ``Config.pretty_text`` has yapf format the whole config each time
that it is read: for the log, for the file in the work dir, and for every
checkpoint. Importing this module keeps the latest text for as long as the
config has the same content.
"""
from typing import Any, Dict

from mmengine.config import Config

_make_text = Config.pretty_text.fget
_latest: Dict[str, Any] = {}


def pretty_text(config: Config) -> str:
    """What MMEngine's ``Config.pretty_text`` returns."""
    content = repr(config.to_dict()), config._format_python_code
    if _latest.get('content') != content:
        _latest.update(text=_make_text(config), content=content)
    return _latest['text']


Config.pretty_text = property(pretty_text)
