"""From what ranks report of themselves to who is lost. Pure.

    connection broken      lost, as soon as the others have said what they wait for
    no report for 0.8·d    lost: killed without a farewell, or standing still
    cut off                rank r waits for p, p has for d sent more frames than r has got, and nothing of p came

Whoever computes reports on and is never lost, however slow; while a model is loaded, the thread that reports may have
to wait. Whoever waits has sent what the others wait for, or waits for somebody itself: blame follows the frames that
were sent and did not come, to the rank that most others accuse. Rank 0 is never blamed; who cannot hear it is cut off.
Where a link has been silent for longer before and come back, as under heavy loss, it may be silent for twice as long
again.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from astra.control.words import Report

__all__ = ["Judge", "Known", "Lost", "describe"]

SILENT_SHARE = 0.8
"""Of `detect_s`, after which a rank that does not report is lost: it is to be noticed within `detect_s`."""
SETTLE_S = 0.2
"""Two reports: how long the others have to say that they wait for one whose connection broke."""
WITNESS_SHARE = 0.5
"""Of what a link is allowed, after which its silence counts too once that of another has lasted too long: who is cut
off loses all links at once, but does not owe something on each of them at once."""
LONGEST_STALL = 3.0
"""Times `detect_s` that a link may be silent at most, whatever it has been before."""


@dataclass
class Known:
    """What is known of one rank."""

    report: Report
    heard_s: float
    """When it last reported, on the judge's clock, which stands still while nobody looks at it."""
    broken_s: float | None = None
    """When its connection was found broken."""
    why: str = "its connection broke"


@dataclass(frozen=True)
class Lost:
    """A rank that is lost."""

    rank: int
    why: str
    may_return: bool
    """Whether it may join again as it is: one that stood still, but not one that others cannot hear."""


@dataclass(frozen=True)
class _Owing:
    """Frames under way, behind so many that have arrived."""

    received: int
    since_s: float


@dataclass
class Judge:
    """What links have been seen to do, and how long anybody may be silent."""

    detect_s: float
    stalls_s: dict[tuple[int, int], float] = field(default_factory=dict)
    """Longest silence that each link (from, to) has come back from."""
    owing: dict[tuple[int, int], "_Owing"] = field(default_factory=dict)
    """Links on which something was sent that has not arrived."""

    def lost(self, known: Mapping[int, Known], members: Collection[int], now_s: float) -> list[Lost]:
        """Return those of the members but rank 0 that are lost by now."""
        found = []
        for rank in sorted(set(members) & set(known)):
            one = known[rank]
            if rank and one.broken_s is not None:
                if now_s - one.broken_s >= SETTLE_S:
                    found.append(Lost(rank, one.why, may_return=False))
            elif rank and one.report.state != "loading" and now_s - one.heard_s >= SILENT_SHARE * self.detect_s:
                found.append(Lost(rank, f"it has not reported for {now_s - one.heard_s:.1f} s", may_return=True))
        if found or any(known[rank].broken_s is not None for rank in set(members) & set(known)):
            return found
        return self._cut_off({rank: known[rank] for rank in members if rank in known})

    def _cut_off(self, known: Mapping[int, Known]) -> list[Lost]:
        accusers: dict[int, list[str]] = {}
        is_time = False
        for receiver, one in known.items():
            for sender, silent_s in one.report.waits_for.items():
                link = (sender, receiver)
                silent_s = min(silent_s, self._owing_s(known, *link))
                allowed_s = min(max(self.detect_s, 2 * self.stalls_s.get(link, 0.0)), LONGEST_STALL * self.detect_s)
                is_time |= silent_s >= allowed_s
                if silent_s >= WITNESS_SHARE * allowed_s:
                    accusers.setdefault(sender or receiver, []).append(
                        f"rank {receiver} has not got what rank {sender} sent for {silent_s:.1f} s"
                    )
        if not is_time:
            return []
        rank = max(accusers, key=lambda accused: (len(accusers[accused]), accused))
        return [Lost(rank, f"it is cut off: {', '.join(accusers[rank])}", may_return=False)]

    def _owing_s(self, known: Mapping[int, Known], sender: int, receiver: int) -> float:
        """Return for how long frames have been under way to a rank, by its reports; 0 if none are."""
        link, heard_s = (sender, receiver), known[receiver].heard_s
        here, there = known[receiver].report, known[sender].report if sender in known else None
        received, before = here.received.get(sender, 0), self.owing.get(link)
        if before is not None and before.received != received:
            self.stalls_s[link] = max(self.stalls_s.get(link, 0.0), heard_s - before.since_s)
            del self.owing[link]
        if there is None or there.epoch != here.epoch or there.sent.get(receiver, 0) <= received:
            self.owing.pop(link, None)
            return 0.0
        return heard_s - self.owing.setdefault(link, _Owing(received, heard_s)).since_s


def describe(lost: Collection[Lost], reports: Mapping[int, Report]) -> str:
    """Say who is lost and why, and who waited for whom, and for what."""
    parts = []
    for one in lost:
        report = reports.get(one.rank)
        device = f" ({report.device})" if report is not None and report.device else ""
        parts.append(f"rank {one.rank}{device} is lost: {one.why}")
    gone = {one.rank for one in lost}
    for rank, report in sorted(reports.items()):
        if rank not in gone and report.waits_for:
            names = ", ".join(map(str, sorted(report.waits_for)))
            several = "s" if len(report.waits_for) > 1 else ""
            parts.append(f"rank {rank} waited for rank{several} {names}: {report.doing}")
    return "; ".join(parts)
