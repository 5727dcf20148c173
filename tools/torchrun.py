# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""``torchrun`` for tools that say themselves what a mistake is.

It takes the arguments of ``torchrun``, and shows its summary only for
processes that were killed. Used by tools/dist_train.sh and tools/dist_test.sh.
"""
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        sys.exit(1 if first.exitcode == 1 else str(error))
