"""Key files: made by hand, read back, refused for a reason, and never shown."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from astra.cli import app
from astra.environment import Environment
from astra.errors import ConfigError
from astra.transport.keys import Keys, make_keys
from testbed.cli import app as other_app
from testbed.keys import AGENT_FILE, CONTROLLER_FILE, ControlKeys, rank_keys


def test_keys_command_makes_a_set_that_ranks_can_read(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["keys", str(tmp_path / "keys"), "--world-size", "3"])
    assert done.exit_code == 0, done.output
    sets = [Keys.read(tmp_path / "keys" / f"rank{rank}.json", rank, 3) for rank in range(3)]
    assert len({each.public for each in sets}) == 1
    assert all(each.secret.decode() not in done.output for each in sets)
    assert stat.S_IMODE((tmp_path / "keys" / "rank0.json").stat().st_mode) == 0o600
    again = CliRunner().invoke(app, ["keys", str(tmp_path / "keys"), "--world-size", "3"])
    assert again.exit_code == 2


def test_testbed_keys_command_makes_both_sides(tmp_path: Path) -> None:
    done = CliRunner().invoke(other_app, ["keys", str(tmp_path)])
    assert done.exit_code == 0, done.output
    controller, agent = (ControlKeys.read(tmp_path / name) for name in (CONTROLLER_FILE, AGENT_FILE))
    assert controller.public.decode() == agent.peer
    assert agent.public.decode() == controller.peer


def test_what_testbed_writes_is_what_astra_reads(tmp_path: Path) -> None:
    for rank, text in enumerate(rank_keys(2)):
        path = tmp_path / f"{rank}.json"
        path.touch(0o600)
        path.write_text(text)
        assert Keys.read(path, rank, 2).public == Keys.read(path, rank, 2).among([0, 1]).public


def test_keys_of_fewer_members_are_numbered_anew() -> None:
    keys = make_keys(4)
    assert keys[3].among([0, 3]).public == (keys[0].public[0], keys[0].public[3])


def written(tmp_path: Path, mode: int = 0o600, **changes: object) -> Path:
    keys = make_keys(2)
    fields = {"secret": keys[0].secret.decode(), "public": [key.decode() for key in keys[0].public], **changes}
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(fields))
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("changes", "rank", "message"),
    [
        ({"mode": 0o644}, 0, "CURVE_KEYS must be a file that only its owner may read, got mode 0644"),
        ({"secret": "short"}, 0, "secret must be a key of 40 characters, got something else"),
        ({"public": ["x"]}, 0, "public must be 2 different keys, one a rank, got 0"),
        ({"public": None}, 0, "public must be 2 different keys, one a rank, got 0"),
        ({}, 1, "secret must be that of rank 1, got another rank's"),
    ],
)
def test_key_file_is_refused_for_a_reason(tmp_path: Path, changes: dict[str, object], rank: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Keys.read(written(tmp_path, **changes), rank, 2)  # type: ignore[arg-type]
    assert "`astra keys` makes a set" in str(caught.value)


def test_key_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a key file that can be read, got No such file"):
        Keys.read(tmp_path / "none", 0, 2)
    (tmp_path / "junk").write_text("{")
    with pytest.raises(ConfigError, match="must be a key file that can be read, got no JSON"):
        Keys.read(tmp_path / "junk", 0, 2)


def test_secret_keys_are_not_shown() -> None:
    keys = make_keys(2)[0]
    assert keys.secret.decode() not in repr(keys)


@pytest.mark.parametrize(("text", "path"), [("", None), ("/k.json", Path("/k.json"))])
def test_environment_names_the_key_file(text: str, path: Path | None) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    assert Environment.read({**place, "CURVE_KEYS": text}).curve_keys == path
