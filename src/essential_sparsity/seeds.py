"""Seeds as pure functions: one run seed gives independent ones for head, order, mask and every step."""

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed for a purpose; the same arguments give the same seed on every machine."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
