"""One rank answers a labelled set with one strategy: what each answer is made from comes together on rank 0.

    for each batch:   rank 0 ── start ──► peers;  forward ◄──── strategy ────► forward;  with datagrams also ◄── done
                      classes, scores   logits of rank 0
                      language, cloze   each rank: negative log-likelihood of the labels of the rows that it computed
    at the end        ◄───────── likelihoods, if there are any ──────────

Each token's likelihood comes from the row that the strategy really computes for it, on the rank that computes it, and
only its sum over a text travels. `start` keeps ranks within a batch of one another, so that no wait is longer. Late
datagrams are not waited for, so there ranks begin every batch together.

    legend: N examples, or texts, C outputs or candidates, B batch, T tokens, D width, R rows
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astra.data import Examples, to_input
from astra.data.labelled import NOT_COUNTED
from astra.evaluation.metrics import PERPLEXITY, choose, perplexity, score
from astra.jobs import Job
from astra.models import ModelAdapter, ModelShape
from astra.starting import StartWord
from astra.strategies import STRATEGIES, RankContext, Request
from astra.transport import Tag

__all__ = ["Answers", "Progress", "answer_examples", "num_batches", "unknown_ids"]

LOGITS_AT_ONCE = 1 << 23
"""Numbers that are alive at once while rows are scored: 32 MB, 166 rows of GPT-2's vocabulary."""

Progress = Callable[[int, int], None]
"""Called with how many examples are answered, and of how many."""


@dataclass(frozen=True)
class Answers:
    """What one strategy made of a labelled set."""

    examples: Examples
    predictions_N: NDArray[Any] | None
    """Classes, scores or chosen candidates; None for language."""
    costs_N: NDArray[np.float64] | None
    """Negative log-likelihood of every text; None where answers are classes or scores."""

    def value(self, metric: str) -> float:
        """Return one of the set's metrics."""
        if metric == PERPLEXITY:
            assert self.costs_N is not None, "perplexity is only published for language"
            counted = int((self.examples.labels != NOT_COUNTED).sum())
            return perplexity(float(self.costs_N.sum()), counted)
        assert self.predictions_N is not None, "all other metrics are of predictions"
        return score(metric, self.predictions_N, self.truths)

    @property
    def truths(self) -> NDArray[Any]:
        """What predictions are compared with."""
        return self.examples.labels if self.examples.answers is None else self.examples.answers

    @property
    def are_classes(self) -> bool:
        """Whether an answer is right or wrong."""
        return self.examples.task in ("classification", "cloze")


def answer_examples(
    context: RankContext, job: Job, examples: Examples, batch_size: int, *, first_index: int, progress: Progress
) -> Answers | None:
    """Take part in answering all examples; return the answers on rank 0, and None elsewhere.

    Takes as many message indices as there are batches (`num_batches`), from `first_index` on.

    Raises:
        PeerTimeoutError: A peer did not answer in time.
    """
    rank, collectives = context.collectives.rank, context.collectives
    texts = examples.inputs
    if examples.task == "cloze":
        texts = texts.reshape(-1, texts.shape[-1])
    likelihoods = _Likelihoods(context.model, examples) if examples.task in ("language", "cloze") else None
    if likelihoods is not None:
        context = replace(context, keep_output=likelihoods.keep)
    strategy = STRATEGIES[job.strategy.name](context, job.strategy)
    logits = []
    index = first_index
    for index, start in enumerate(range(0, len(texts), batch_size), first_index):
        word = StartWord(collectives, Tag(index, 0, "start"), job.called)
        if rank == 0:
            word.say()
        else:
            word.hear()
        batch = slice(start, min(start + batch_size, len(texts)))
        if likelihoods is not None:
            likelihoods.begin(batch)
        band = job.bands[rank]
        logits_BC = strategy.forward(Request(index, to_input(_cut(texts[batch], band)), band.start))
        if logits_BC is not None and likelihoods is None:
            logits.append(logits_BC.numpy())
        word.settle()
        if job.called:
            collectives.gather(Tag(index, 0, "done"), b"")
        if rank == 0:
            progress(batch.stop, len(texts))
    own = b"" if likelihoods is None else likelihoods.costs_N.tobytes()
    payloads = collectives.gather(Tag(index, 0, "answers"), own)
    if payloads is None:
        return None
    if likelihoods is None:
        return _answers(examples, np.concatenate(logits))
    parts = [likelihoods.costs_N, *(np.frombuffer(payload, np.float64) for payload in payloads.values())]
    return _likely(examples, np.sum(parts, axis=0))


def num_batches(examples: Examples, batch_size: int) -> int:
    """Return how many message indices `answer_examples` takes."""
    texts = len(examples.inputs) * (examples.inputs.shape[1] if examples.task == "cloze" else 1)
    return -(-texts // batch_size)


def unknown_ids(examples: Examples, shape: ModelShape) -> list[str]:
    """Say where token ids have no embedding in the model."""
    highest = int(examples.inputs.max()) if shape.vocabulary else 0
    if highest <= max(shape.vocabulary - 1, 0):
        return []
    rule, advice = f"below the model's vocabulary, {shape.vocabulary}", "use the checkpoint's own tokenizer"
    return [f"config: data: token ids must be {rule}, got {highest}; {advice}"]


class _Likelihoods:
    """Negative log-likelihoods of labels, from the rows that one rank computes."""

    def __init__(self, model: ModelAdapter, examples: Examples):
        self._model = model
        self._labels_NT = torch.from_numpy(examples.labels.reshape(-1, examples.labels.shape[-1]))
        self.costs_N = np.zeros(len(self._labels_NT), np.float64)
        """Sum over the tokens of each text, as far as this rank computes them."""
        self._batch = slice(0)

    def begin(self, batch: slice) -> None:
        """Count what comes to these texts."""
        self._batch = batch

    def keep(self, tokens: range, x_BTD: Tensor) -> None:
        """Score rows of the batch's content `tokens`."""
        labels_BT = self._labels_NT[self._batch, tokens.start : tokens.stop]
        counted_BT = labels_BT != NOT_COUNTED
        labels_R, x_RD = labels_BT[counted_BT], x_BTD[counted_BT]
        texts_R = (counted_BT.nonzero()[:, 0] + self._batch.start).numpy()
        at_once = max(1, LOGITS_AT_ONCE // self._model.shape.num_outputs)
        for start in range(0, len(labels_R), at_once):
            rows = slice(start, start + at_once)
            log_RC = self._model.head(x_RD[rows]).float().log_softmax(dim=-1)
            costs_R = -log_RC.gather(1, labels_R[rows, None])[:, 0].double()
            np.add.at(self.costs_N, texts_R[rows], costs_R.numpy())


def _answers(examples: Examples, logits_NC: NDArray[np.float32]) -> Answers:
    if examples.task == "regression":
        return Answers(examples, logits_NC[:, 0], None)
    return Answers(examples, logits_NC.argmax(axis=1), None)


def _likely(examples: Examples, costs_N: NDArray[np.float64]) -> Answers:
    if examples.task == "language":
        return Answers(examples, None, costs_N)
    return Answers(examples, choose(costs_N, examples.inputs.shape[1]), costs_N)


def _cut(batch: NDArray[Any], rows: range) -> NDArray[Any]:
    """Return the rows of pixels or the ids that a rank needs."""
    chosen = slice(rows.start, rows.stop)
    return batch[:, :, chosen] if batch.ndim > 2 else batch[:, chosen]
