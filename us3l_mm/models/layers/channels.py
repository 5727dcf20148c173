# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""How many channels a width means."""


def make_divisible(value: float, divisor: int = 8, min_value: int = 1) -> int:
    """Round ``value`` to the nearest multiple of ``divisor``.

    The result is at least ``min_value``, and one step larger where rounding
    down would lose more than 10 %. This is the rounding of the MobileNets,
    which US3L (arXiv 2303.06870) keeps.
    """
    rounded = max(min_value, int(value + divisor / 2) // divisor * divisor)
    if rounded < 0.9 * value:
        rounded += divisor
    return rounded


def active_channels(channels: int, width: float, divisor: int = 8,
                    ratio: int = 1) -> int:
    """The number of leading channels, of ``channels``, active at ``width``.

    ``make_divisible(channels * width / ratio) * ratio``, at least ``divisor *
    ratio`` and at most ``channels``; ``ratio`` is the expand ratio of an
    inverted residual.
    """
    if width == 1.0:  # the rounding could take channels from the full network
        return channels
    # With its default minimum of 1, make_divisible(2.5) would be 9.
    rounded = ratio * make_divisible(channels * width / ratio, divisor,
                                     min_value=divisor)
    return min(channels, rounded)


def active_steps(channels: int, width: float, steps: int) -> int:
    """:func:`active_channels` for channels that narrow in equal steps.

    The steps are for instance the heads of an attention, which are kept or
    dropped as a whole: the nearest number of them, one more where rounding
    down would lose more than 10 %, and at least one.
    """
    return channels // steps * active_channels(steps, width, divisor=1)
