"""Ranks of a whole benchmark as threads of one process, and what they leave behind."""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra.config import BenchConfig
from astra.control.opening import open_control, without_control
from astra.environment import Environment
from astra.measure import StrategyResult
from astra.reporting import Links, Row
from astra.transport import Tag, Traffic, Transport, Watch, inproc, zeromq
from astra.worker import run_rank

WORDS = {"hello", "greetings", "start", "done", "ready", "end", "counters", "timeline"}
"""Phases of the rank loop's own messages; all others belong to strategies and input placement."""


@dataclass
class Notebook:
    """A reporter that keeps what it is told; `links` gives the counters at each mark."""

    links: Callable[[str], Links | None] = lambda name: None
    rows: dict[str, list[Row]] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    def row(self, table: str, row: Row) -> None:
        self.rows.setdefault(table, []).append(row)

    def mark(self, name: str) -> Links | None:
        self.marks.append(name)
        return self.links(name)

    def progress(self, label: str, done: int, total: int) -> None:
        self.steps.append((label, done, total))

    def again(self) -> bool:
        return False

    def close(self) -> None: ...


@dataclass
class Recorder:
    """A transport that notes what is sent and how it is closed, and leaves the work to another."""

    inner: Transport
    sent: list[tuple[int, Tag, bytes]] = field(default_factory=list)
    aborted: bool | None = None

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def world_size(self) -> int:
        return self.inner.world_size

    @property
    def traffic(self) -> Traffic:
        return self.inner.traffic

    @property
    def watch(self) -> Watch:
        return self.inner.watch

    def send(self, peer: int, tag: Tag, payload: bytes | bytearray | memoryview) -> None:
        self.sent.append((peer, tag, bytes(payload)))
        self.inner.send(peer, tag, payload)

    def receive(self, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        return self.inner.receive(peer, tag, timeout_s)

    def receive_any(self, peers: Collection[int], tag: Tag, timeout_s: float) -> tuple[int, memoryview]:
        return self.inner.receive_any(peers, tag, timeout_s)

    def close(self, abort: bool = False) -> None:
        self.aborted = abort
        self.inner.close(abort)

    def payload_bytes(self) -> int:
        return sum(len(payload) for _, tag, payload in self.sent if tag.phase not in WORDS)


@dataclass
class World:
    """What every rank of a run left behind."""

    notebooks: list[Notebook]
    recorders: list[Recorder]
    results: list[StrategyResult] = field(default_factory=list)
    errors: dict[int, BaseException] = field(default_factory=dict)

    def summary(self) -> dict[str, Row]:
        return {f"{row['strategy']} {row['settings']}".strip(): row for row in self.notebooks[0].rows["summary"]}


def serve(
    config: BenchConfig,
    out: Path,
    *,
    world_size: int = 2,
    port: int | None = None,
    present: Sequence[int] | None = None,
    links: Callable[[int, str], Links | None] = lambda rank, name: None,
    cpus: Sequence[float | None] = (),
) -> World:
    """Run the ranks `present` as threads; over ZeroMQ on 127.0.0.1 if a port is given, else in process."""
    pipes = inproc.connect(world_size) if port is None else []
    notebooks = [Notebook(links=lambda name, rank=rank: links(rank, name)) for rank in range(world_size)]  # type: ignore[misc]
    world = World(notebooks, [])

    def connect(rank: int, size: int, address: str, master_port: int, timeout_s: float) -> Transport:
        pair = zeromq.connect(rank, size, address, master_port, timeout_s) if port else pipes[rank]
        recorder = Recorder(pair)
        world.recorders.append(recorder)
        return recorder

    def live(rank: int) -> None:
        environment = Environment(rank, world_size, "127.0.0.1", port or 1, out, 1, cpus[rank] if cpus else None)
        try:
            results = run_rank(config, environment, notebooks[rank], connect, open_control if port else without_control)
        except Exception as error:  # noqa: BLE001 -- handed to the test, which says what it expects
            world.errors[rank] = error
        else:
            world.results.extend(results)

    threads = [threading.Thread(target=live, args=(rank,)) for rank in present or range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.recorders.sort(key=lambda recorder: recorder.rank)
    return world


def served(config: BenchConfig, out: Path, **how: Any) -> World:
    world = serve(config, out, **how)
    for error in world.errors.values():
        raise error
    return world
