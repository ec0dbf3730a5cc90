"""`astra bench` that also keeps what no table shows: every code it sent, and every answer. Run on a device, or called.

Writes `codes.json` (request, layer, peer, payload as hex) and on rank 0 `logits.json` into TESTBED_OUT.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astra import reporting
from astra.config import BenchConfig
from astra.config_file import load_config
from astra.environment import Environment
from astra.measure import label
from astra.reporting import Reporter
from astra.transport import Tag, Transport
from astra.transport.zeromq import connect as connect_zeromq
from astra.worker import run_rank

Connect = Callable[..., Transport]


def record(config: BenchConfig, environment: Environment, reporter: Reporter, connect: Connect) -> None:
    """Be one rank and write down what it sent and answered."""
    codes: list[tuple[int, int, int, str]] = []

    def connect_and_listen(*where: Any, **keys: Any) -> Transport:
        transport = connect(*where, **keys)
        send = transport.send

        def send_and_note(peer: int, tag: Tag, payload: bytes | bytearray | memoryview) -> None:
            if tag.phase == "codes":
                codes.append((tag.request, tag.layer, peer, bytes(payload).hex()))
            send(peer, tag, payload)

        transport.send = send_and_note  # type: ignore[method-assign]
        return transport

    results = run_rank(config, environment, reporter, connect_and_listen)
    environment.out.mkdir(parents=True, exist_ok=True)
    (environment.out / "codes.json").write_text(json.dumps(codes))
    if environment.rank == 0:
        logits = {label(result.strategy): [answer.logits.tolist() for answer in result.answers] for result in results}
        (environment.out / "logits.json").write_text(json.dumps(logits))


if __name__ == "__main__":
    record(
        load_config(Path(os.environ["TESTBED_CONFIG"])),
        Environment.read(os.environ),
        reporting.connect(),
        connect_zeromq,
    )
