"""Trying again: until it succeeds, or time is up."""

import pytest

from testbed.errors import DeviceError
from testbed.retrying import retried


def test_what_succeeds_in_the_end_is_returned() -> None:
    outcomes = [FileNotFoundError("not yet"), FileNotFoundError("not yet"), "there"]

    def attempt() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, FileNotFoundError):
            raise outcome
        return outcome

    got = retried(attempt, while_raising=FileNotFoundError, timeout_s=60, period_s=0.001, complaint=str)
    assert (got, outcomes) == ("there", [])


def test_end_of_patience_is_an_error_that_says_what_was_missing() -> None:
    def attempt() -> str:
        raise FileNotFoundError("nothing there")

    with pytest.raises(DeviceError, match="must be there, got nothing there"):
        retried(
            attempt,
            while_raising=FileNotFoundError,
            timeout_s=0.01,
            period_s=0.001,
            complaint=lambda error: f"it must be there, got {error}",
        )


def test_any_other_error_is_not_waited_out() -> None:
    def attempt() -> str:
        raise PermissionError("never")

    with pytest.raises(PermissionError):
        retried(attempt, while_raising=FileNotFoundError, timeout_s=60, period_s=1, complaint=str)
