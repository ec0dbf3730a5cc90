"""Recorded courses of links: what is read, how time goes on, and what is refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.traces import FRAME_BITS, Course, Step, TraceError, read, steps_of


def test_mahimahi_counts_a_full_frame_an_opportunity_in_bins() -> None:
    # 10 opportunities in the first 100 ms, none in the second, 1 at the end, 250 ms.
    course = read("\n".join([*(str(10 * n) for n in range(10)), "250"]), "mahimahi")
    assert course.duration_s == 0.25
    assert course.at_s == (0.0, 0.1, 0.2)
    rates = [step.rate_bps for step in course.steps]
    assert rates == pytest.approx([10 * FRAME_BITS / 0.1, 0, FRAME_BITS / 0.05])


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=200).filter(lambda times: max(times) > 0))
def test_mahimahi_keeps_every_bit(times: list[int]) -> None:
    course = read("\n".join(map(str, sorted(times))), "mahimahi")
    assert course.bits == pytest.approx(len(times) * FRAME_BITS)
    assert course.at_s[0] == 0
    assert all(before < after for before, after in itertools.pairwise((*course.at_s, course.duration_s)))


@pytest.mark.parametrize(
    ("text", "course"),
    [
        ("0,5\n1.5,10\n", Course((0.0, 1.5), (Step(5e6), Step(10e6)), 3.0)),
        ("# recorded on a train\n100, 5\n\n101, 0\n", Course((0.0, 1.0), (Step(5e6), Step(0.0)), 2.0)),
        ("0,5,20\n2,10,30,1\n", Course((0.0, 2.0), (Step(5e6, 0.02), Step(10e6, 0.03, 0.01)), 4.0)),
        (
            "seconds,loss_pct,rate_mbps\n0,1,2\n1,0,3",
            Course((0.0, 1.0), (Step(2e6, None, 0.01), Step(3e6, None, 0.0)), 2),
        ),
        ("7,5", Course((0.0,), (Step(5e6),), 1.0)),
    ],
)
def test_csv_reads_seconds_and_settings(text: str, course: Course) -> None:
    assert read(text, "csv") == course


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("mahimahi", "", "must be a recording that lasts"),
        ("mahimahi", "0\n0", "must be a recording that lasts"),
        ("mahimahi", "1\ntwo", "correct line 2, 'two'"),
        ("mahimahi", "1\n-2", "correct line 2, '-2'"),
        ("mahimahi", "5\n4", "correct line 2, 4 after 5"),
        ("mahimahi", "86400001", "at most 24 hours"),
        ("csv", "", "at least one row"),
        ("csv", "seconds,rate_mbps", "at least one row"),
        ("csv", "seconds,seconds,rate_mbps\n1,2,3", "correct seconds,seconds,rate_mbps"),
        ("csv", "seconds,bandwidth\n1,2", "correct seconds,bandwidth"),
        ("csv", "1", "line 1, which has 1 columns"),
        ("csv", "1,2,3,4,5", "line 1, which has 5 columns"),
        ("csv", "0,1\n1,x", "correct line 2, '1,x'"),
        ("csv", "0,-1", "rate_mbps is from 0 to 10000"),
        ("csv", "0,nan", "rate_mbps is from 0 to 10000"),
        ("csv", "0,1,70000", "delay_ms is from 0 to 60000"),
        ("csv", "0,1,0,101", "loss_pct is from 0 to 100"),
        ("csv", "nan,1", "finite seconds"),
        ("csv", "0,1\n0,2", "whose seconds grow; correct line 2"),
        ("csv", "0,1\n100000,2", "at most 24 hours"),
    ],
)
def test_read_refuses_what_is_no_recording(form: str, text: str, said: str) -> None:
    with pytest.raises(TraceError) as caught:
        read(text, form)
    assert said in str(caught.value)


def test_steps_end_with_the_recording_or_begin_again() -> None:
    course = read("0,5\n1,10\n", "csv")
    assert [at_s for at_s, _ in steps_of(course, loop=False)] == [0.0, 1.0]
    looped = list(itertools.islice(steps_of(course, loop=True), 5))
    assert looped == [(0.0, Step(5e6)), (1.0, Step(10e6)), (2.0, Step(5e6)), (3.0, Step(10e6)), (4.0, Step(5e6))]
