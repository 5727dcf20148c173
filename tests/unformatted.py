# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Importing this keeps MMEngine from formatting configs.

It formats the whole config for the log, the file and each checkpoint, which
takes longer than a small run. The text is valid without it.
"""
from yapf.yapflib import yapf_api

yapf_api.FormatCode = lambda text, **kwargs: (text, False)
