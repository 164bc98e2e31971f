"""Seeds as pure functions: one run seed gives independent ones for head, order, mask and every step."""

import hashlib

import numpy as np

_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed for a purpose; the same arguments give the same seed on every machine."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def splitmix64(counters: np.ndarray, key: int) -> np.ndarray:
    """Mix counters (uint64, overwritten) into independent 64-bit draws of a key; all arithmetic is modulo 2^64.

    Steele, Lea and Flood 2014. A draw depends on its counter and the key alone: there is no stream to keep.
    """
    counters *= np.uint64(_GAMMA)
    counters += np.uint64(key)
    for shift, factor in _MIX:
        counters ^= counters >> np.uint64(shift)
        counters *= np.uint64(factor)
    counters ^= counters >> np.uint64(31)
    return counters
