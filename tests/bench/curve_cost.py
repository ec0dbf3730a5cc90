"""What CURVE costs: latency and throughput between two ranks over loopback, with and without keys, by turns in one run.

    python tests/bench/curve_cost.py

Both ranks are threads of one process, so times hold both sides' work. Also what it costs to make a datagram's tag.
"""

import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from transport_worlds import connect_zeromq

from astra.transport import Tag
from astra.transport.datagram_framing import Label, encode_header, is_sealed, seal
from astra.transport.framed import FramedTransport

SIZES = {"codes of 256 tokens, 320 B": 320, "a frame, 64 KiB": 65_536, "fp32 rows, 786 kB": 786_432}
ROUNDS = 10
EXCHANGES = 30
STREAM_BYTES = 32 << 20
TAGS = 20_000


def answer(transport: FramedTransport, first: int, count: int, payload: bytes) -> None:
    for number in range(first, first + count):
        transport.receive(0, Tag(number, 0, "ask"), 30)
        transport.send(0, Tag(number, 0, "answer"), payload)


def round_trips_s(pair: list[FramedTransport], first: int, payload: bytes) -> list[float]:
    """Time exchanges of a message each way."""
    peer = threading.Thread(target=answer, args=(pair[1], first, EXCHANGES, payload))
    peer.start()
    taken_s = []
    for number in range(first, first + EXCHANGES):
        began_s = time.perf_counter()
        pair[0].send(1, Tag(number, 0, "ask"), payload)
        pair[0].receive(1, Tag(number, 0, "answer"), 30)
        taken_s.append(time.perf_counter() - began_s)
    peer.join()
    return taken_s


def stream(pair: list[FramedTransport], request: int) -> tuple[float, float]:
    """Send 32 MiB one way; return megabytes per second, and seconds of CPU time for a megabyte."""
    payload, count = bytes(1 << 20), STREAM_BYTES >> 20
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for layer in range(count):
        pair[0].send(1, Tag(request, layer, "rows"), payload)
    for layer in range(count):
        pair[1].receive(0, Tag(request, layer, "rows"), 60)
    megabytes = STREAM_BYTES / 1e6
    return megabytes / (time.perf_counter() - began_s), (time.process_time() - began_cpu_s) / megabytes


def datagram_tag_us() -> float:
    """CPU time to make and to check one tag of a full datagram."""
    key, piece = bytes(32), bytes(1300)
    header = encode_header(1, 0, 0, Label(1, 1, 0, 1, 0, 1, 1))
    began_s = time.process_time()
    for _ in range(TAGS):
        is_sealed(key, seal(key, header, piece))
    return (time.process_time() - began_s) / TAGS * 1e6


def main() -> None:
    worlds = {"plain": connect_zeromq(2), "CURVE": connect_zeromq(2, with_keys=True)}
    request = 1
    print("| message | one way, plain, ms p50 | with CURVE | ratio |\n| --- | --- | --- | --- |")  # noqa: T201
    for label, size in SIZES.items():
        taken_s: dict[str, list[float]] = {name: [] for name in worlds}
        for _ in range(ROUNDS):
            for name, pair in worlds.items():
                taken_s[name] += round_trips_s(pair, request, bytes(size))
            request += EXCHANGES
        plain, curve = (statistics.median(taken_s[name]) / 2 * 1e3 for name in ("plain", "CURVE"))
        print(f"| {label} | {plain:.3f} | {curve:.3f} | {curve / plain:.2f} |")  # noqa: T201
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in worlds}
    for _ in range(ROUNDS):
        for name, pair in worlds.items():
            found[name].append(stream(pair, request))
        request += 1
    for position, unit in ((0, "MB/s"), (1, "CPU seconds a MB, both sides")):
        plain, curve = (statistics.median(pair[position] for pair in found[name]) for name in ("plain", "CURVE"))
        print(f"{unit}: plain {plain:.4g}, CURVE {curve:.4g}, ratio {curve / plain:.2f}")  # noqa: T201
    print(f"a datagram's tag, made and checked: {datagram_tag_us():.1f} us")  # noqa: T201
    for pair in worlds.values():
        for transport in pair:
            transport.close(abort=True)


if __name__ == "__main__":
    main()
