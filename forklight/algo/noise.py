"""Counter-based noise: a number that depends on its keys alone.

A stateful generator gives a token another number as soon as the batch, the rank or the order changes. Here the number
of a token is a hash of its identity (run seed, rollout, problem, answer, position, ...), so it is the same on
every machine, in every batch and after every resume. The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014): each key selects one output of the stream seeded by the keys before it.
"""

import hashlib

import torch
from torch import Tensor

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def hash_bits(*keys: Tensor | int) -> Tensor:
    """Hashes integer keys to 64 bits.

    With one key `k` this is output number `k` (from 0) of SplitMix64 seeded with 0; every further key selects an output
    of the stream seeded with the hash so far. For fixed other keys, distinct last keys never collide.

    Args:
        *keys: at least one. int64 tensors of any shapes that broadcast, or Python ints (taken modulo 2**64). The order
            of the keys matters.

    Returns:
        int64 tensor of the broadcast shape; all 64 bits are random, the sign included.

    Raises:
        ValueError: no key.
        TypeError: a tensor key that is not int64.
    """
    if not keys:
        raise ValueError("hash_bits needs at least one key")
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        state = _mix(state + (_as_int64(key) + 1) * _signed(_GOLDEN_GAMMA))
    return state


def hash_uniform(*keys: Tensor | int) -> Tensor:
    """Hashes integer keys to a uniform number in [0, 1).

    Args:
        *keys: as for `hash_bits`.

    Returns:
        float64 tensor of the broadcast shape: the upper 53 bits of the hash times 2**-53, so every value is exact.
    """
    return _shift_right(hash_bits(*keys), 11).to(torch.float64) * 2.0**-53


def string_key(text: str) -> int:
    """Turns a text into a key: the first 8 bytes of its SHA-256, as a signed integer.

    Args:
        text: any text, such as a problem's uid.

    Returns:
        An integer in [-2**63, 2**63), the same in every process.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(_MULTIPLIER_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MULTIPLIER_2)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically: the copies of the sign bit are masked out
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _as_int64(key: Tensor | int) -> Tensor:
    if not isinstance(key, Tensor):
        return torch.tensor(_signed(key), dtype=torch.int64)
    if key.dtype != torch.int64:
        raise TypeError(f"hash keys must be int64, not {key.dtype}")
    return key
