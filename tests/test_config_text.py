# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The text of a config: MMEngine's, formatted once."""
import copy

from mmengine.config import Config
from small_run import small_cfg
from yapf.yapflib import yapf_api

from us3l_mm.fileio import config_text


def test_equal_configs_are_formatted_once(monkeypatch):
    formatted, seen = yapf_api.FormatCode, []

    def note(text, **kwargs):
        seen.append(text)
        return formatted(text, **kwargs)

    monkeypatch.setattr(yapf_api, 'FormatCode', note)
    cfg = small_cfg('of this test')
    first = cfg.pretty_text
    assert first == config_text._make_text(cfg) and len(seen) == 2
    # The Runner keeps a copy, and reads its text for each checkpoint.
    assert copy.deepcopy(cfg).pretty_text == cfg.pretty_text == first
    assert len(seen) == 2
    assert Config.fromstring(first, '.py').to_dict() == cfg.to_dict()
    # Every change, at any depth, is in the text at once.
    cfg.model.head.loss.shift_factor = 0.125
    assert 'shift_factor=0.125' in cfg.pretty_text and len(seen) == 3
    cfg.train_dataloader.dataset.pipeline.pop(0)
    assert 'SeedAugmentation' not in cfg.pretty_text and len(seen) == 4
    bare = Config(cfg.to_dict(), format_python_code=False)
    assert bare.pretty_text == config_text._make_text(bare)
    assert len(seen) == 4
