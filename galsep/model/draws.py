"""Random numbers that belong to an example, whatever batch, process or device it is in.

Each number is a hash of the example's seed, of what it is for, and of its place (SplitMix64,
Steele, Lea & Flood 2014): there is no state to share, save or hand on, and a batch is drawn at
once.
"""

import math

import torch
from torch import Tensor

__all__ = ["ANCHORS", "BOXES", "PROPOSALS", "TRUTHS", "keys", "keys_at", "normal"]

ANCHORS = 1
PROPOSALS = 2
TRUTHS = 3
BOXES = 4
"""What numbers are for; each has its own."""

_GAMMA, _FIRST, _SECOND = (
    value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_FINE = 2**24
"""Steps of the interval from 0 to 1 that single precision tells apart."""


def keys(seeds: Tensor, count: int, purpose: int) -> Tensor:
    """Draw integers, equally likely from 0 to 2⁶³.

    Parameters
    ----------
    seeds : IntTensor[n]
    count : int
    purpose : int
        One of this module's constants.

    Returns
    -------
    IntTensor[n, count]
        The first numbers are the same for any ``count``.
    """
    return keys_at(seeds, torch.arange(count, device=seeds.device), purpose)


def keys_at(seeds: Tensor, place: Tensor, purpose: int) -> Tensor:
    """Draw those of the numbers of :func:`keys` that are at some places.

    Parameters
    ----------
    seeds : IntTensor[n]
    place : IntTensor[n, k] or IntTensor[k]
        Positions among the numbers of each seed, from 0.
    purpose : int
        One of this module's constants.

    Returns
    -------
    IntTensor[n, k]
    """
    start = _mixed(_mixed(seeds) + purpose)
    return _shifted(_mixed(start[:, None] + (place + 1) * _GAMMA), 1)


def normal(seeds: Tensor, count: int, purpose: int) -> Tensor:
    """Draw normal numbers of mean 0 and standard deviation 1.

    Parameters
    ----------
    seeds, count, purpose
        See :func:`keys`.

    Returns
    -------
    FloatTensor[n, count]
    """
    uniform = (_shifted(keys(seeds, count, purpose), 39).double() + 0.5) / _FINE
    return (math.sqrt(2) * torch.erfinv(2 * uniform - 1)).float()


def _mixed(value: Tensor) -> Tensor:
    value = (value ^ _shifted(value, 30)) * _FIRST
    value = (value ^ _shifted(value, 27)) * _SECOND
    mixed: Tensor = value ^ _shifted(value, 31)
    return mixed


def _shifted(value: Tensor, places: int) -> Tensor:
    """Shift bits to the right and fill up with zeros, as unsigned integers are."""
    shifted: Tensor = (value >> places) & (2 ** (64 - places) - 1)
    return shifted
