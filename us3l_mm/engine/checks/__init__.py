# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What is compared before the first iteration, and refused."""
