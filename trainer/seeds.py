"""Randomness from names, not from order: equal names give equal numbers on every machine."""

import hashlib


def derive_seed(*names: object) -> int:
    """A 63-bit seed from the parts of a name, for example (seed, "noise", step, lane)."""
    text = "/".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
