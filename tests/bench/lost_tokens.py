"""What lost codes cost in accuracy: digits on four devices in one process, packets lost by the testbed's own patterns.

    python tests/bench/lost_tokens.py FOLDER        a folder of `astra train` with model and codebooks for digits

No time passes here: a lost packet is known to be lost, so accuracy depends on the patterns alone. Twelve images are
answered together, so that they share their losses: 30 requests for each of three seeds. Not a test: prints a table,
judges nothing.
"""

import statistics
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from astra.codebook import CodebookSpec
from astra.collectives import Collectives
from astra.config import AstraConfig, ModelConfig
from astra.data import load_examples
from astra.data_config import DataConfig
from astra.models import load_model
from astra.strategies import STRATEGIES, RankContext, Request
from astra.timeline import Timeline
from astra.transport import inproc
from astra.transport.datagram import DatagramTraffic
from astra.transport.datagram_framing import Datagram, Label
from astra.transport_config import DatagramConfig
from testbed.loss import Bernoulli, GilbertElliott, Loss, drop_pattern

RANKS, IMAGES, BATCH, SEEDS = 4, 360, 12, 3
LOSSES: dict[str, Loss] = {
    "none": Bernoulli(0.0),
    "1 %": Bernoulli(0.01),
    "5 %": Bernoulli(0.05),
    "10 %": Bernoulli(0.1),
    "bursts, 2.3 %": GilbertElliott(enter=0.01, leave=0.33, bad_loss=0.8),
    "bursts, 9 %": GilbertElliott(enter=0.04, leave=0.33, bad_loss=0.8),
}
WAYS = {
    "mask": DatagramConfig(deadline_ms=0.001),
    "stale": DatagramConfig(deadline_ms=0.001, on_missing="stale"),
    "copies: 2": DatagramConfig(deadline_ms=0.001, copies=2),
}


class Network:
    """Carries datagrams between threads at once, or notes that they are lost."""

    def __init__(self, loss: Loss, seed: int):
        self.changed = threading.Condition()
        self.boxes: list[dict[tuple[int, int], list[Datagram | None]]] = [{} for _ in range(RANKS)]
        self._patterns = {
            (source, destination): drop_pattern(loss, seed=seed, source=f"d{source}", destination=f"d{destination}")
            for source in range(RANKS)
            for destination in range(RANKS)
        }
        self._positions = dict.fromkeys(self._patterns, 0)

    def carry(self, source: int, destination: int, label: Label, piece: bytes) -> None:
        """Put a datagram into its box, or None in its place."""
        position = self._positions[source, destination]
        self._positions[source, destination] = position + 1
        pattern = self._patterns[source, destination]
        datagram = None if pattern[position % len(pattern)] else Datagram(0, 0, source, label, piece, 0.0)
        with self.changed:
            self.boxes[destination].setdefault((label.request, label.layer), []).append(datagram)
            self.changed.notify_all()


class Port:
    """One rank's end of it, with the face of a `DatagramPort`."""

    def __init__(self, rank: int, network: Network, copies: int):
        self.rank, self.late = rank, list[Datagram]()
        self.traffic = DatagramTraffic(*[0] * len(DatagramTraffic.__slots__))
        self._network, self._expected, self._key = network, (RANKS - 1) * copies, (0, 0)

    def begin(self, request: int, layer: int) -> None:
        self._key = (request, layer)

    def send(self, peer: int, label: Label, piece: bytes) -> None:
        self._network.carry(self.rank, peer, label, piece)

    def collect(self, timeout_s: float) -> list[Datagram]:
        box = self._network.boxes[self.rank]
        with self._network.changed:
            self._network.changed.wait_for(
                lambda: (
                    len(box.get(self._key, [None] * self._expected)) == self._expected
                    and (self._key in box or self._key[0] < 0)
                )
            )
            found = box[self._key]
            box[self._key] = [None] * self._expected
        return [datagram for datagram in found if datagram is not None]

    def reject(self, datagram: Datagram) -> None:
        raise AssertionError(f"{datagram.label} fits no message")


def right_and_missing(folder: Path, transport: DatagramConfig, loss: Loss, seed: int) -> tuple[float, float]:
    """Answer all images; return the share of right answers and the share of missing tokens."""
    config = ModelConfig(size="digits", image_size=8, num_labels=10, checkpoint=str(folder))
    spec = CodebookSpec(**{name: METADATA[name] for name in ("num_layers", "width", "num_groups", "num_codewords")})
    strategy = AstraConfig(num_groups=spec.num_groups, num_codewords=spec.num_codewords, transport=transport)
    examples = load_examples(DataConfig(name="digits"), config, "test", limit=IMAGES)
    model, kind = load_model(config), STRATEGIES["astra"]
    weights = (1.0,) * RANKS
    ranges = kind.partition(model.shape, strategy, weights)
    network, transports = Network(loss, seed), inproc.connect(RANKS)
    collectives = [
        Collectives(each, 60.0, Port(rank, network, transport.copies))  # type: ignore[arg-type]
        for rank, each in enumerate(transports)
    ]

    def one_rank(rank: int) -> Iterator[int]:
        ready = kind(RankContext(model, collectives[rank], ranges, weights, Timeline(rank), folder), strategy)
        rows = model.input_rows(ranges[rank])
        for number in range(0, len(examples.inputs), BATCH):
            inputs = to_input(examples.inputs[number : number + BATCH, :, rows.start : rows.stop])
            logits = ready.forward(Request(number, inputs, rows.start))
            if logits is not None:
                yield from logits.argmax(dim=1).tolist()

    with ThreadPoolExecutor(RANKS) as pool:
        answers, *_ = pool.map(lambda rank: list(one_rank(rank)), range(RANKS))
    right = statistics.fmean(int(a == b) for a, b in zip(answers, examples.labels.tolist(), strict=True))
    expected = sum(each.rows.expected for each in collectives)
    return right, sum(each.rows.missing for each in collectives) / expected


if __name__ == "__main__":
    import json

    from astra.data import to_input

    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    METADATA = json.loads((place / "astra.json").read_text())
    print(f"digits, {IMAGES} test images, {RANKS} devices, G={METADATA['num_groups']}, K={METADATA['num_codewords']}")  # noqa: T201
    for lost, loss in LOSSES.items():
        for way, transport in WAYS.items():
            found = [right_and_missing(place, transport, loss, seed) for seed in range(1 if lost == "none" else SEEDS)]
            accuracies, missing = zip(*found, strict=True)
            spread = f"({100 * min(accuracies):.1f} to {100 * max(accuracies):.1f})"
            print(  # noqa: T201
                f"{lost:14} {way:10} missing {100 * statistics.fmean(missing):5.2f} %   "
                f"accuracy {100 * statistics.fmean(accuracies):.2f} % {spread}",
                flush=True,
            )
