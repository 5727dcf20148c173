# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Types of command-line arguments."""
from argparse import ArgumentTypeError

from us3l_mm.models.layers import Subnet


def subnet_argument(text: str) -> Subnet:
    """The sub-network that ``text`` names.

    Raises:
        ArgumentTypeError: With what is allowed, which argparse prints.
    """
    try:
        return Subnet.of(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
