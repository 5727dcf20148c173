# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What an exact continuation needs to know besides the weights."""
