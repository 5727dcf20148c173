# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Random numbers that are a function of a seed, for many seeds at once."""
import numpy as np

# The increment of SplitMix64, 2**64 divided by the golden ratio.
GAMMA = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """Uniform random numbers in [0, 1) for each seed.

    Each row is the beginning of the sequence of one SplitMix64 generator, so
    it does not depend on the other seeds. A generator of NumPy for each seed
    takes longer to construct than all numbers take here. Source: G. Steele, D.
    Lea and C. Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014.

    Args:
        seeds (ndarray): Integers from 0 to 2**64 - 1, shape (N, ).
        count (int): Numbers for each seed.

    Returns:
        ndarray: float64 of shape (N, count), multiples of 2**-53.
    """
    # Seeds may be successive integers: their states are outputs themselves.
    states = _mix(np.asarray(seeds).astype(np.uint64) + GAMMA)
    steps = np.arange(1, count + 1, dtype=np.uint64) * GAMMA
    return (_mix(states[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    """The output of SplitMix64 for its states, uint64 (modulo 2**64)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def between(numbers: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map uniform numbers in [0, 1) to [low, high)."""
    return low + (high - low) * numbers
