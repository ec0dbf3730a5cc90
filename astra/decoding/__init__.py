"""How each strategy goes on after its prefill: one token at a time. The registry.

    DECODERS[name](RankContext, config, KeyValueCache)   on every rank, once
        .step(Step)                                      on every rank, per token: scores on rank `home`
    DECODERS[name].plan(shape, config, world_size)       the traffic of one step, as a pure formula

A strategy without an entry answers requests but does not generate; the config says so before anything starts.
"""

from collections.abc import Mapping

from astra.decoding.local import FirstRankDecoder, LastRankDecoder
from astra.decoding.pipeline import PipelineDecoder
from astra.decoding.protocol import Decoder, Step
from astra.decoding.sequence import SequenceDecoder
from astra.decoding.tensor import TensorDecoder

__all__ = ["DECODERS", "Decoder", "Step"]

DECODERS: Mapping[str, type[Decoder]] = {
    "single": FirstRankDecoder,
    "tensor": TensorDecoder,
    "sequence": SequenceDecoder,
    "pipeline": PipelineDecoder,
    "galaxy": TensorDecoder,
    "prism": LastRankDecoder,
    "astra": LastRankDecoder,
}
