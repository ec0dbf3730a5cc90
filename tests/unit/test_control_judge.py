"""Who is lost, from what ranks report: the killed, the still and the cut off, but never the slow."""

from typing import Any

import pytest

from astra.control.judge import Judge, Known, describe
from astra.control.words import Epoch, Report, pack, unpack_report, unpack_word

DETECT_S = 1.0
MEMBERS = (0, 1, 2)


def report(rank: int, **changes: Any) -> Report:
    told: dict[str, Any] = {
        "life": f"life{rank}", "device": f"d{rank}", "address": "10.0.0.1", "state": "serving", "epoch": 0,
        "waits_for": {}, "doing": "", "sent": {}, "received": {},
    }  # fmt: skip
    return Report(rank, **(told | changes))


def waiting(rank: int, silent_s: float, *peers: int, received: int = 5, sent: int = 5, **changes: Any) -> Report:
    others = [other for other in MEMBERS if other != rank]
    return report(
        rank,
        waits_for=dict.fromkeys(peers, silent_s),
        doing="request 3, layer 1, phase 'codes'",
        sent=dict.fromkeys(others, sent),
        received=dict.fromkeys(others, received),
        **changes,
    )


def cut_off(*reports: Report, for_s: float = 1.1) -> list[int]:
    """Who is lost when ranks report the same again after a while."""
    judge = Judge(DETECT_S)
    assert lost(list(reports), judge=judge) == []
    return lost(list(reports), 10.0 + for_s, judge)


def lost(reports: list[Report], now_s: float = 10.0, judge: Judge | None = None, **known: Any) -> list[int]:
    told = {each.rank: Known(each, known.get(f"heard{each.rank}", now_s)) for each in reports}
    for rank, since_s in known.get("broken", {}).items():
        told[rank].broken_s = since_s
    return [one.rank for one in (judge or Judge(DETECT_S)).lost(told, MEMBERS, now_s)]


def test_judge_takes_a_slow_rank_for_alive() -> None:
    computing = report(1, sent={0: 5, 2: 5}, received={0: 6, 2: 6})
    others = [waiting(0, 300.0, 1, sent=6), waiting(2, 300.0, 1, sent=6)]
    assert lost([computing, *others]) == []


def test_judge_notices_silence_within_the_limit() -> None:
    reports = [report(rank) for rank in MEMBERS]
    assert lost(reports, heard1=9.5) == []
    assert lost(reports, heard1=10 - 0.85 * DETECT_S) == [1]


def test_judge_lets_a_rank_load_in_silence() -> None:
    assert lost([report(0), report(1, state="loading"), report(2)], heard1=0.0) == []


def test_judge_waits_two_reports_after_a_broken_connection() -> None:
    reports = [report(rank) for rank in MEMBERS]
    assert lost(reports, broken={2: 9.9}) == []
    assert lost(reports, broken={2: 9.7}) == [2]


def test_judge_takes_what_was_sent_just_now_for_on_its_way() -> None:
    """Rank 1 has computed for long; its frames have left when it reports, but not arrived when the others did."""
    assert lost([waiting(0, 30.0, 1), report(1, sent={0: 6, 2: 6}), waiting(2, 30.0, 1)]) == []


def test_judge_blames_whom_most_cannot_hear() -> None:
    """Rank 2 is cut off: the others have not got its frames, nor it theirs."""
    assert cut_off(waiting(0, 1.1, 2, sent=6), waiting(1, 1.1, 2, sent=6), waiting(2, 1.1, 0, 1, sent=6)) == [2]


def test_judge_hears_younger_witnesses_when_it_is_time() -> None:
    """Rank 2 is cut off; the first link to be silent for too long is the one on which it waits for rank 1."""
    judge = Judge(DETECT_S)
    first = [report(0), report(1, sent={2: 6}), waiting(2, 1.1, 1)]
    assert lost(first, 10.0, judge) == []
    second = [waiting(0, 0.7, 2, sent=6), report(1, sent={2: 6}), waiting(2, 1.1, 0, 1, sent=6)]
    assert lost(second, 10.4, judge) == []
    assert lost(second, 11.1, judge) == [2]


def test_judge_never_blames_rank_0() -> None:
    assert cut_off(waiting(0, 1.1, 1, sent=6), waiting(1, 1.1, 0, sent=6), report(2)) == [1]
    assert cut_off(report(0, sent={1: 6, 2: 6}), waiting(1, 1.1, 0), report(2)) == [1]


def test_judge_does_not_blame_who_merely_waits() -> None:
    """Rank 0 waits for 1, which waits for 2, which is cut off from 1 alone."""
    last = report(2, sent={0: 5, 1: 6}, received={0: 5, 1: 5})
    assert cut_off(waiting(0, 5.0, 1), waiting(1, 1.1, 2), last) == [2]


def test_judge_is_patient_until_the_limit_while_packets_come_and_with_other_epochs() -> None:
    owing = report(2, sent={0: 6})
    assert cut_off(waiting(0, 5.0, 2), report(1), owing, for_s=0.9) == []
    assert cut_off(waiting(0, 0.1, 2), report(1), owing) == [], "a slow link brings packets, if no whole frame"
    assert cut_off(waiting(0, 5.0, 2), report(1), owing._replace(epoch=1)) == []
    assert cut_off(waiting(0, 5.0, 2), report(1), owing) == [2]


def test_judge_allows_a_link_twice_the_silence_that_it_came_back_from() -> None:
    judge = Judge(DETECT_S)
    assert lost([waiting(0, 5.0, 2), report(1), report(2, sent={0: 6})], 10.0, judge) == []
    assert lost([waiting(0, 5.0, 2, received=6), report(1), report(2, sent={0: 7})], 10.9, judge) == []
    later = [waiting(0, 5.0, 2, received=6), report(1), report(2, sent={0: 7})]
    assert lost(later, 12.6, judge) == []
    assert lost(later, 12.8, judge) == [2]


def test_judge_says_who_waited_for_whom_and_for_what() -> None:
    told = {0: Known(waiting(0, 1.1, 1, 2), 10.0), 1: Known(waiting(1, 1.1, 2), 10.0), 2: Known(report(2), 1.0)}
    found = Judge(DETECT_S).lost(told, MEMBERS, 10.0)
    assert describe(found, {rank: known.report for rank, known in told.items()}) == (
        "rank 2 (d2) is lost: it has not reported for 9.0 s; "
        "rank 0 waited for ranks 1, 2: request 3, layer 1, phase 'codes'; "
        "rank 1 waited for rank 2: request 3, layer 1, phase 'codes'"
    )


@pytest.mark.parametrize(
    "epoch", [Epoch(3, (0, 2), ("10.0.0.1", "10.0.0.3"), 4711, 1, 7, 42), Epoch(0, (0,), ("",), 1, 0, 0, 0)], ids=str
)
def test_words_round_trip(epoch: Epoch) -> None:
    word = unpack_word(pack("epoch", *epoch))
    assert word is not None
    assert word.epoch == epoch
    assert unpack_report(pack("report", *waiting(1, 0.5, 0, 2))) == waiting(1, 0.5, 0, 2)
    assert unpack_report(pack("bye")) == ""
    assert unpack_report(pack("failed", "why")) == "why"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        pack("beat", 1),
        pack("epoch", 1),
        pack("gone", ["a"], "x"),
        pack("report", "1"),
        pack(),
        pack(None),
    ],
)
def test_words_that_are_none_are_dropped(frame: bytes) -> None:
    assert unpack_word(frame) is None
    assert unpack_report(frame) is None
