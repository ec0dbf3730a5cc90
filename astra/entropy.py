"""Codes as a range coder writes them: each in as many bits as its probability says. Sole importer of constriction.

    codes_X, contexts_X ──sorted by context──► range coder ──► 32-bit words, little-endian
                codes_X ──CRC-32──► 16 bits of check behind them

Any bytes are codes to a range coder, and one damaged bit changes all that follows it. The check is of what was coded:
it finds damage, and a sender that has other tables or knows other codes of the layer before.

Codes of one context follow one another, so that a call codes as many as can be. Probabilities are whole numbers of
65,536, and contexts whole numbers too, so that devices of any kind come to the same intervals.

X: codes of a message in any order that both sides know; S contexts, K codewords.

Source: constriction (R. Bamler), a range coder after Martin, 1979: 32-bit words, 64 bits of state.
"""

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from astra.errors import WireError

__all__ = ["PROBABILITY_TOTAL", "CodeCoder"]

PROBABILITY_TOTAL = 65536
"""What the probabilities of a context add up to."""

_WORD_BYTES = 4
_CHECK_BYTES = 2

Whole = npt.NDArray[np.int64]


class CodeCoder:
    """Codes and decodes what follows the probabilities of its contexts."""

    def __init__(self, probabilities_SK: npt.NDArray[np.uint16]):
        """Take probabilities of at least 1 in PROBABILITY_TOTAL, to which every row adds up."""
        import constriction  # not on every machine; codes of fixed length go without

        self._probabilities_SK = probabilities_SK
        self._stream = constriction.stream
        self._models: dict[int, Any] = {}

    def encode(self, codes_X: Whole, contexts_X: Whole) -> bytes:
        """Return the codes as bytes."""
        order_X, runs = _runs(contexts_X)
        sorted_X = codes_X[order_X].astype(np.int32)
        encoder, first = self._stream.queue.RangeEncoder(), 0
        for context, count in runs:
            encoder.encode(sorted_X[first : first + count], self._model(context))
            first += count
        words: npt.NDArray[np.uint32] = encoder.get_compressed()
        return words.astype("<u4").tobytes() + _check_of(codes_X)

    def decode(self, payload: bytes | memoryview, contexts_X: Whole) -> Whole:
        """Undo `encode`.

        Raises:
            WireError: The bytes are not what `encode` made of so many codes of these contexts.
        """
        words, rest = divmod(len(payload) - _CHECK_BYTES, _WORD_BYTES)
        if words < 0 or rest:
            rule = f"whole words of {_WORD_BYTES} and {_CHECK_BYTES} of check"
            raise WireError(f"entropy-coded codes: bytes must be {rule}, got {len(payload)}; the message is damaged")
        order_X, runs = _runs(contexts_X)
        decoder = self._stream.queue.RangeDecoder(np.frombuffer(payload, "<u4", words).astype(np.uint32))
        try:
            parts = [decoder.decode(self._model(context), count) for context, count in runs]
        except AssertionError as error:  # bytes that no codes have
            raise _unreadable(len(contexts_X)) from error
        codes_X = np.empty(len(contexts_X), np.int64)
        codes_X[order_X] = np.concatenate(parts) if parts else []
        if not decoder.maybe_exhausted() or payload[-_CHECK_BYTES:] != _check_of(codes_X):
            raise _unreadable(len(contexts_X))
        return codes_X

    def _model(self, context: int) -> Any:
        """Return a context's intervals, made when they are first needed: 3 µs and 4 KB for 1,024 codewords."""
        model = self._models.get(context)
        if model is None:
            probabilities_K = self._probabilities_SK[context] / PROBABILITY_TOTAL
            model = self._models[context] = self._stream.model.Categorical(probabilities_K, perfect=False)
        return model


def _unreadable(num_codes: int) -> WireError:
    return WireError(
        f"entropy-coded codes: bytes must be {num_codes} codes as they were sent, got others; the message is damaged, "
        "or the ranks have different tables: use the same codebook folder everywhere"
    )


def _check_of(codes_X: Whole) -> bytes:
    """Return bytes that other codes hardly have."""
    return zlib.crc32(codes_X.astype("<u2").tobytes()).to_bytes(4, "little")[:_CHECK_BYTES]


def _runs(contexts_X: Whole) -> tuple[Whole, list[tuple[int, int]]]:
    """Return an order by context, and how many codes there are of each context that occurs."""
    counts_S = np.bincount(contexts_X)
    (used,) = counts_S.nonzero()
    order_X = np.argsort(contexts_X, kind="stable")
    return order_X, list(zip(used.tolist(), counts_S[used].tolist(), strict=True))
