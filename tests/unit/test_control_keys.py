"""Agents and controller: nobody without the run's keys is heard or hears anything, and what is dropped is counted."""

import asyncio
import contextlib
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from transport_worlds import free_port

from testbed.controller_line import ControllerLine
from testbed.errors import DeviceError, InputError
from testbed.keys import AGENT_FILE, CONTROLLER_FILE, ControlKeys, make_control_keys
from testbed.mailbox import Mailbox
from testbed.protocol.frames import encode
from testbed.protocol.from_agents import AgentMessage, Beat, Hello
from testbed.protocol.to_agents import Ping
from testbed.runtimes.compose import ComposeRuntime
from testbed.runtimes.state import ProcessId, RunState

PATIENCE_S = 10.0
BRIEF_S = 0.5
HELLO = encode(Hello(device="d0", address="10.77.0.1", pid=1, life="a"))


@contextmanager
def mailbox(keys: ControlKeys | None) -> Iterator[tuple[Mailbox, str, list[str]]]:
    lines: list[str] = []
    made = Mailbox(["d0", "d1"], lines.append, keys)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    made.bind(endpoint)
    try:
        yield made, endpoint, lines
    finally:
        made.close()


def heard(box: Mailbox, within_s: float) -> list[tuple[str, AgentMessage]]:
    """Return the first messages that come in time."""
    deadline_s = time.monotonic() + within_s
    found: list[tuple[str, AgentMessage]] = []
    while not found and time.monotonic() < deadline_s:
        found = list(box.receive(20))
    return found


async def talk(endpoint: str, keys: Path | None, renews: bool = False) -> bytes | None:
    """Say hello again and again, as an agent does, until something comes back."""
    line = ControllerLine(endpoint, "d0", keys)
    answer = asyncio.create_task(line.receive())
    try:
        for _ in range(int(PATIENCE_S / 0.1) if renews else 10):
            with contextlib.suppress(zmq.Again):  # nobody is there yet
                await line.send(HELLO, zmq.NOBLOCK)
            done, _ = await asyncio.wait([answer], timeout=0.1)
            if done:
                return answer.result()
            if renews:
                line.renew()
        return None
    finally:
        answer.cancel()
        line.close()


def in_background(
    endpoint: str, keys: Path | None, renews: bool = False
) -> tuple[threading.Thread, list[bytes | None]]:
    answers: list[bytes | None] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(talk(endpoint, keys, renews))), daemon=True)
    thread.start()
    return thread, answers


def test_agent_with_the_keys_is_heard_and_answered(tmp_path: Path) -> None:
    controller, agent = make_control_keys()
    agent.write(tmp_path / AGENT_FILE)
    with mailbox(controller) as (box, endpoint, _):
        thread, answers = in_background(endpoint, tmp_path / AGENT_FILE)
        assert [name for name, _ in heard(box, PATIENCE_S)] == ["d0"]
        box.send("d0", Ping())
        thread.join(PATIENCE_S)
        assert answers == [encode(Ping())]
        assert not box.dropped


@pytest.mark.parametrize("armed", ["nothing", "other keys", "the controller's public key"])
def test_stranger_is_neither_heard_nor_answered(tmp_path: Path, armed: str) -> None:
    controller, agent = make_control_keys()
    stranger = make_control_keys()[1]
    if armed == "the controller's public key":
        stranger = ControlKeys(stranger.secret, agent.peer)
    stranger.write(tmp_path / AGENT_FILE)
    with mailbox(controller) as (box, endpoint, lines):
        thread, answers = in_background(endpoint, None if armed == "nothing" else tmp_path / AGENT_FILE)
        assert heard(box, 1.5) == []
        thread.join(PATIENCE_S)
        assert answers == [None]
        assert box.dropped["refused"] == len(lines) == (armed == "the controller's public key")


def test_agent_takes_the_keys_of_the_next_run_when_they_come(tmp_path: Path) -> None:
    controller, agent = make_control_keys()
    make_control_keys()[1].write(tmp_path / AGENT_FILE)  # left by an earlier run
    with mailbox(controller) as (box, endpoint, _):
        thread, answers = in_background(endpoint, tmp_path / AGENT_FILE, renews=True)
        assert heard(box, BRIEF_S) == []
        agent.write(tmp_path / AGENT_FILE)
        assert [name for name, _ in heard(box, PATIENCE_S)] == ["d0"]
        box.send("d0", Ping())
        thread.join(PATIENCE_S)
        assert answers == [encode(Ping())]


def test_agent_says_which_keys_never_came(tmp_path: Path) -> None:
    async def call() -> None:
        ControllerLine("tcp://127.0.0.1:9", "d0", tmp_path / AGENT_FILE, keys_timeout_s=BRIEF_S)

    with pytest.raises(DeviceError, match=r"--keys: .*agent\.json must be there within 0\.5 s, got nothing"):
        asyncio.run(call())


def test_mailbox_counts_what_it_drops_and_logs_each_kind_once() -> None:
    with mailbox(None) as (box, endpoint, lines), zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(endpoint)
        for _ in range(3):
            stranger.send(b"junk")
            stranger.send_multipart([b"several", b"parts"])
            stranger.send(encode(Beat()))
        deadline_s = time.monotonic() + PATIENCE_S
        while box.dropped.total() < 9 and time.monotonic() < deadline_s:
            assert list(box.receive(20)) == []
        assert box.dropped == {"malformed": 6, "unknown": 3}
        assert len(lines) == 2


def test_key_files_are_their_owners_alone(tmp_path: Path) -> None:
    controller, _ = make_control_keys()
    controller.write(tmp_path / "k")
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert ControlKeys.read(tmp_path / "k") == controller
    assert controller.secret not in repr(controller)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"secret": "x", "peer": "y"}', '{"secret": 1, "peer": 2}'])
def test_damaged_key_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(InputError, match="must be a key file as `testbed keys` makes"):
        ControlKeys.read(tmp_path / "k")


def compose(monkeypatch: pytest.MonkeyPatch, folder: Path) -> ComposeRuntime:
    monkeypatch.setenv("TESTBED_KEYS", str(folder))
    return ComposeRuntime(RunState("0", "n", "compose", ("d0",), ProcessId(0, 0)))


def test_compose_leaves_the_agents_keys_for_as_long_as_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = compose(monkeypatch, tmp_path)
    controller = runtime.keys()
    assert controller is not None
    assert ControlKeys.read(tmp_path / AGENT_FILE).peer.encode() == controller.public
    runtime.remove()
    assert list(tmp_path.iterdir()) == []


def test_compose_takes_keys_that_were_made_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, _ = make_control_keys()
    controller.write(tmp_path / CONTROLLER_FILE)
    runtime = compose(monkeypatch, tmp_path)
    assert runtime.keys() == controller
    runtime.remove()
    assert [path.name for path in tmp_path.iterdir()] == [CONTROLLER_FILE]


def test_compose_says_where_keys_go_if_there_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="TESTBED_KEYS: must be a folder that agents share"):
        compose(monkeypatch, tmp_path / "none").keys()
