# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From a config and a launcher to a run that can start, and say why it ended.
"""
