"""Who still takes part: a star with rank 0, beside the network that requests go over.

    every rank ──Report, 10 times a second──► rank 0 ──judge──► who is lost
               ◄──gone | recall | fail─────── rank 0
               ◄──Epoch: members, where to meet, where to go on──

A thread on every rank; no data connection carries a heartbeat. `presence` is what a rank reports of itself, `judge`
decides from all reports (pure), `host` and `guest` are the two ends, `alone` stands in where there is nobody to lose.
Membership changes by epochs: each has a rendezvous, connections and a token of its own, so that nothing sent before can
enter it.
"""

from astra.control.plane import Control, Limits, Position, alone
from astra.control.words import Epoch

__all__ = ["Control", "Epoch", "Limits", "Position", "alone"]
