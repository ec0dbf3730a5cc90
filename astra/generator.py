"""One text's life under one strategy: prefill by the strategy, then token after token by its decoder.

    prefill   prompt ──Strategy.forward──► scores on rank 0 ──choose──► first token
              every rank that decodes keeps what it attended to
    decode    token ──► ranks that embed it ──Decoder.step──► scores on rank `home` ──choose──► next token ──► rank 0

Always makes as many tokens as asked for, also past a model's end of text, so that all strategies do the same work.
Does not measure and does not report.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

from astra.cache import KeyValueCache
from astra.config import StrategyConfig
from astra.decoding import DECODERS, Decoder, Step
from astra.models import ModelShape
from astra.sampling import Sampler
from astra.strategies import STRATEGIES, RankContext, Request
from astra.traffic import PlannedMessage
from astra.transport import Tag

__all__ = ["Generator", "plan_decode"]

_TOKEN = struct.Struct("<I")


class Generator:
    """One strategy on one rank; every call must be made by all ranks."""

    def __init__(self, context: RankContext, config: StrategyConfig, sampler: Sampler, new_tokens: int):
        """Take how to choose tokens and how many of them make a text, the first included."""
        kind, world_size = DECODERS[config.name], context.collectives.world_size
        cache = KeyValueCache(new_tokens - 1)  # the last token is never embedded
        if context.collectives.rank in kind.holders(world_size):
            context = replace(context, keep=cache.keep)
        self._context = context
        self._collectives = context.collectives
        self._sampler = sampler
        self._new_tokens = new_tokens
        self._strategy = STRATEGIES[config.name](context, config)
        self._decoder: Decoder = kind(context, config, cache)

    def first_token(self, request: Request, number: int) -> int | None:
        """Run the prompt through the strategy; return the first token on rank 0, and None elsewhere.

        `number` counts texts within a strategy: with `seed`, it decides what is drawn.
        """
        logits_BC = self._strategy.forward(request)
        return None if logits_BC is None else self._sampler.choose(logits_BC[0], number, 0)

    def further_tokens(self, index: int, number: int, first: int | None) -> Iterator[int | None]:
        """Yield token after token on rank 0 as soon as it is there, and None as often elsewhere.

        `first` is what `first_token` returned. Steps are tagged index + 1, index + 2, … like requests of their own.
        """
        prompt = self._context.model.shape.num_content_tokens
        token = self._pass_on(index, 0, first)
        for step in range(1, self._new_tokens):
            self._context.timeline.begin_request(index + step)
            logits_BC = self._decoder.step(Step(index + step, prompt + step - 1, token))
            token = None if logits_BC is None else self._sampler.choose(logits_BC[0], number, step)
            token = self._pass_on(index + step, step, token)
            yield token if self._collectives.rank == 0 else None

    def _pass_on(self, index: int, step: int, token: int | None) -> int | None:
        """Bring the token of a step from where it was chosen to whoever needs it; return it there."""
        rank, transport = self._collectives.rank, self._collectives.transport
        source, receivers = _ways(self._decoder, self._collectives.world_size, step, self._new_tokens)
        tag = Tag(index, self._context.model.shape.num_layers, "token")
        if rank == source:
            assert token is not None, "the rank that chooses has chosen"
            with self._context.timeline.span("send"):
                for peer in receivers:
                    transport.send(peer, tag, _TOKEN.pack(token))
            return token
        if rank in receivers:
            with self._context.timeline.span("wait"):
                return int(_TOKEN.unpack(transport.receive(source, tag, self._collectives.timeout_s))[0])
        return None


def plan_decode(shape: ModelShape, config: StrategyConfig, world_size: int, new_tokens: int) -> list[PlannedMessage]:
    """Return every message after a text's first token: the steps of the others, and the tokens themselves. Pure."""
    kind = DECODERS[config.name]
    steps = [
        replace(message, count=message.count * (new_tokens - 1)) for message in kind.plan(shape, config, world_size)
    ]
    tokens = []
    for step in range(new_tokens):
        source, receivers = _ways(kind, world_size, step, new_tokens)
        tokens += [PlannedMessage(source, peer, _TOKEN.size) for peer in receivers]
    return [message for message in steps if message.count] + tokens


def _ways(kind: Decoder | type[Decoder], world_size: int, step: int, new_tokens: int) -> tuple[int, Sequence[int]]:
    """Return where the token of a step is chosen, and to whom it goes: the terminal, and unless last, the embedders."""
    if new_tokens == 1:
        return 0, ()
    source = 0 if step == 0 else kind.home(world_size)
    wanted = {0, *(kind.embedders(world_size) if step < new_tokens - 1 else ())}
    return source, sorted(wanted - {source})
