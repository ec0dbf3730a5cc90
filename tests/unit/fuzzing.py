"""What a broken or hostile sender makes of a valid frame."""

import random


def damage(valid: bytes, rng: random.Random) -> bytes:
    """Change some bytes, cut some off, or put some more behind."""
    damaged = bytearray(valid)
    for _ in range(rng.randint(1, 4)):
        if damaged:
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    kept = damaged[: rng.randint(0, len(damaged))] if rng.random() < 0.3 else damaged
    return bytes(kept) + (rng.randbytes(rng.randint(1, 40)) if rng.random() < 0.2 else b"")
