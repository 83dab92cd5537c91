"""A random order without memory: the n-th of so many things, from a key.

The same integer arithmetic as ``mix`` and ``shuffled`` in ``cuda_ext/kernels.h``, on PyTorch's signed 64-bit
integers, whose products wrap around as unsigned ones do.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 1 << 64
ROUNDS = 4


def mixed(word: int) -> int:
    """SplitMix64 (Steele, Lea and Flood 2014): a scrambled 64-bit number."""
    word = (word + 0x9E3779B97F4A7C15) % WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def shuffled(index: Tensor, count: int, key: int) -> Tensor:
    """The places ``int64 [n]`` at ``index`` of a random order of ``range(count)`` that ``key`` chooses.

    A bijection on the next power of two, repeated until it falls inside.
    """
    bits = max(1, (count - 1).bit_length())
    mask, half = (1 << bits) - 1, (bits + 1) // 2
    result = _scrambled(index, mask, half, key)
    while bool((outside := result >= count).any()):
        result[outside] = _scrambled(result[outside], mask, half, key)
    return result


def turns(first: int, count: int, available: int, seed: int, scale: int) -> Tensor:
    """Which of the ``available`` things of a scale are drawn as number ``first .. first + count - 1``.

    Every thing comes once before any comes again, each time in another order.

    Returns:
        ``int64 [count]``.
    """
    numbers = torch.arange(first, first + count)
    places = torch.empty_like(numbers)
    for turn in range(first // available, (first + count - 1) // available + 1):
        inside = numbers // available == turn
        key = mixed(mixed(mixed(seed) + scale) + turn)
        places[inside] = shuffled(numbers[inside] % available, available, key)
    return places


def _scrambled(index: Tensor, mask: int, half: int, key: int) -> Tensor:
    for _ in range(ROUNDS):
        key = mixed(key)
        index = (index * _signed(key | 1) + (key >> 32)) & mask
        index = index ^ (index >> half)
    return index


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word
