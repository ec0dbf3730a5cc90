"""What can be wrong with `generation` in a config: alone, for its model and for its strategies.

Reads a checkpoint's `config.json` if the folder is there. Loads no weights and no torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from astra.config import GenerationConfig, ModelConfig
from astra.faults import Path as FaultPath
from astra.faults import fault
from astra.strategy_config import AnyStrategy, AutoConfig

__all__ = ["GENERATING_STRATEGIES", "generation_faults", "unsuited_strategies"]

GENERATING_FAMILIES = ("gpt2", "llama")

GENERATING_STRATEGIES = ("single", "tensor", "sequence", "pipeline", "galaxy", "prism", "astra")
"""Those with a decoder."""

_POSITION_KEYS = {"gpt2": "n_positions", "llama": "max_position_embeddings"}


def generation_faults(where: str, generation: GenerationConfig, model: ModelConfig | None) -> list[str]:
    """List what is wrong with `generation`, and with it for `model`; None for a model with faults of its own."""
    found = []
    if generation.top_k is not None and generation.temperature == 0:
        rule, advice = "left out where temperature is 0", "the best token is taken; raise temperature to draw"
        found.append(fault(where, ("generation", "top_k"), rule, generation.top_k, advice))
    if model is None:
        return found
    if model.family not in GENERATING_FAMILIES:
        rule, advice = f"one of {', '.join(GENERATING_FAMILIES)} to generate", "run `astra bench` for the others"
        return [*found, fault(where, ("model", "family"), rule, model.family, advice)]
    return found + _length_faults(where, generation, model)


def unsuited_strategies(where: str, strategies: Sequence[AnyStrategy | AutoConfig | None]) -> list[str]:
    """List the strategies that cannot generate."""
    rule, advice = f"one of {', '.join(GENERATING_STRATEGIES)} to generate", "run `astra bench` for the others"
    return [
        fault(where, ("strategies", index, "name"), rule, strategy.name, advice)
        for index, strategy in enumerate(strategies)
        if strategy is not None and strategy.name not in GENERATING_STRATEGIES
    ]


def _length_faults(where: str, generation: GenerationConfig, model: ModelConfig) -> list[str]:
    """Compare prompt and new tokens with the positions that the model has; the last new token needs none."""
    positions = _positions(model)
    if positions is None or model.num_tokens is None:
        return []
    room = positions - model.num_tokens + 1
    if room < 1:
        path: FaultPath = ("model", "num_tokens")
        rule = f"at most the model's {positions} positions to generate"
        return [fault(where, path, rule, model.num_tokens, "use a shorter prompt")]
    if generation.max_new_tokens > room:
        rule = f"at most {room} after a prompt of {model.num_tokens} tokens, as the model has {positions} positions"
        advice = "ask for fewer tokens or use a shorter prompt"
        return [fault(where, ("generation", "max_new_tokens"), rule, generation.max_new_tokens, advice)]
    return []


def _positions(model: ModelConfig) -> int | None:
    """Return how many tokens of a text the model has positions for; None if there is no bound, or none is known."""
    if model.checkpoint is None:
        return model.preset.positions
    try:
        stored = json.loads((Path(model.checkpoint) / "config.json").read_text(encoding="utf-8"))
        return int(stored[_POSITION_KEYS[model.family]])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is wrong with the checkpoint is said elsewhere; one on a hub is checked when it is here
