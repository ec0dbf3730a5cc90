"""What this rank reports of itself, read off the transport's watch by the control thread.

    serving thread ── free(), take(epoch), begin(watch) ──► Presence ──report()──► control thread
                                                                    ◄── alarm, gone ──

What is decided about an epoch before its transport is there reaches the transport's watch as soon as it is.
"""

import secrets
import threading
import time
from collections.abc import Collection

from astra.control.arrivals import since_last_data_s
from astra.control.words import Epoch, Report
from astra.errors import TransportError
from astra.transport.watch import Watch

__all__ = ["Presence"]

LOOK_CLOSER_S = 0.3
"""Silence of a peer after which the kernel is asked whether a part of a frame came."""


class Presence:
    """One rank, as it shows itself to the others."""

    def __init__(self, rank: int, device: str, address: str, control_port: int):
        self.rank = rank
        self.device = device
        self.life = secrets.token_hex(8)
        self._address = address
        self._control_port = control_port
        self._state = "loading"
        self._epoch: Epoch | None = None
        self._watch = Watch()
        self._deciding = threading.Lock()

    @property
    def epoch(self) -> int:
        """Number of the epoch that this rank took part in last; -1 for none."""
        return -1 if self._epoch is None else self._epoch.number

    @property
    def gone(self) -> frozenset[int]:
        """Ranks of the epoch that are done without."""
        return self._watch.gone

    def free(self) -> None:
        """Wait for the next epoch."""
        self._state = "free"

    def take(self, epoch: Epoch) -> None:
        """Get ready for an epoch."""
        with self._deciding:
            self._epoch, self._watch, self._state = epoch, Watch(), "serving"

    def begin(self, watch: Watch, verdict_s: float) -> None:
        """Take part in it with a transport."""
        with self._deciding:
            watch.alarm, watch.gone, watch.verdict_s = self._watch.alarm, self._watch.gone, verdict_s
            self._watch = watch

    def leave_out(self, ranks: Collection[int]) -> None:
        """Do without these ranks from now on."""
        with self._deciding:
            members = () if self._epoch is None else self._epoch.members
            self._watch.gone |= {members.index(rank) for rank in ranks if rank in members}

    def alarm(self, error: TransportError) -> None:
        """Interrupt whatever the serving thread waits for in its epoch."""
        with self._deciding:
            self._watch.alarm = error

    def report(self) -> Report:
        """Return what this rank does just now."""
        epoch, watch, waiting = self._epoch, self._watch, self._watch.waiting
        members = () if epoch is None else epoch.members
        waits_for, doing = {}, ""
        if epoch is not None and waiting is not None and self._state == "serving":
            tag = waiting.tag
            doing = f"request {tag.request}, layer {tag.layer}, phase {tag.phase!r}"
            for peer in waiting.peers:
                since_s = max(waiting.since_s, watch.heard_s.get(peer, 0.0))
                waits_for[members[peer]] = self._silent_s(epoch.addresses[peer], time.monotonic() - since_s)
        return Report(
            rank=self.rank,
            life=self.life,
            device=self.device,
            address=self._address,
            state=self._state,
            epoch=self.epoch,
            waits_for=waits_for,
            doing=doing,
            sent={members[peer]: count for peer, count in dict(watch.frames_sent).items()},
            received={members[peer]: count for peer, count in dict(watch.frames_received).items()},
        )

    def _silent_s(self, address: str, silent_s: float) -> float:
        if silent_s < LOOK_CLOSER_S:
            return silent_s
        kernel_s = since_last_data_s(address, self._control_port)
        return silent_s if kernel_s is None else min(silent_s, kernel_s)
