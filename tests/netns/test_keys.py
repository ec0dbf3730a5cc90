"""Keys in namespaces: none unless the scenario asks for them, and then nowhere but in the program's own file."""

import json
from pathlib import Path

import pytest
from whole_runs import logs, run

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

# Backwards, so that whatever keeps what the program printed (its log, the report) does not hold the keys themselves.
SHOW_KEYS = 'if [ -n "$CURVE_KEYS" ]; then stat -c "%a %u" "$CURVE_KEYS"; id -u; rev "$CURVE_KEYS"; else echo none; fi'


@pytest.mark.parametrize("curve", ["auto", "never"])
def test_programs_get_no_keys_where_one_kernel_has_everything(place: Path, curve: str) -> None:
    done = run(place, ["sh", "-c", SHOW_KEYS], security={"curve": curve})
    assert done.returncode == 0, done.stdout + done.stderr
    assert logs(place, "d1") == "none\n"
    assert json.loads((place / "out" / "manifest.json").read_text())["curve"] is False


def test_programs_get_keys_that_only_they_can_read_where_the_scenario_says_so(place: Path) -> None:
    done = run(place, ["sh", "-c", SHOW_KEYS], security={"curve": "always"})
    assert done.returncode == 0, done.stdout + done.stderr
    files = []
    for device in ("d0", "d1"):
        shown, user, text = logs(place, device).splitlines()
        assert shown == f"600 {user}"
        files.append(json.loads(text[::-1]))
    assert files[0]["public"] == files[1]["public"]
    assert files[0]["secret"] != files[1]["secret"]
    secrets = [each["secret"].encode() for each in files]
    for path in place.rglob("*"):
        assert not path.is_file() or not any(secret in path.read_bytes() for secret in secrets), path
    assert json.loads((place / "out" / "manifest.json").read_text())["curve"] is True
