"""Which packets of a link were lost, from its pattern and what the kernel counted. Pure.

    pattern (seed, source, destination, model) + packets counted --> lost: how many of those it loses, and its digest

The k-th packet of a link is lost where the pattern says so, and the pattern in the kernel was read back. So two runs
with equal digests and with as many packets lost as their patterns say lost the same positions, as far as both went.
"""

import hashlib

from testbed.links import LinkRule
from testbed.loss import drop_pattern

__all__ = ["pattern_columns"]

DIGEST_BYTES = 8


def pattern_columns(rule: LinkRule, destination: str, packets: int, *, changed: bool) -> dict[str, str | int | None]:
    """Return the digest of a link's pattern and how many of its first `packets` packets it loses.

    `changed` says that an event changed the link's loss meanwhile, and with it where positions began: no number then.
    """
    pattern = drop_pattern(rule.loss, seed=rule.seed, source=rule.source, destination=destination)
    digest = hashlib.blake2b(pattern.tobytes(), digest_size=DIGEST_BYTES).hexdigest()
    rounds, rest = divmod(packets, len(pattern))
    lost = rounds * int(pattern.sum()) + int(pattern[:rest].sum())
    return {"pattern_digest": digest, "lost_by_pattern": None if changed else lost}
