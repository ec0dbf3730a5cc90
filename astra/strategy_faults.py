"""What can be wrong with a list of strategies, of which each is right by itself: with one another, and with the model.

Reads a checkpoint's `config.json` if the folder is there. Loads no weights and no torch.
"""

import importlib.util
from collections.abc import Sequence

from astra import faults
from astra.config import AstraConfig, AutoConfig, ModelConfig, SingleConfig, model_of
from astra.model_faults import missing_files, model_faults, size_faults
from astra.strategy_config import AnyStrategy, QuantisedSection

__all__ = ["Strategies", "bits_faults", "group_faults", "located", "strategy_faults"]

_CODER = "constriction"
"""The package that `entropy` codes with: it has to be built for some processors."""

Strategies = Sequence[AnyStrategy | AutoConfig | None]
"""Entries of a list; None for those that have faults of their own."""


def strategy_faults(
    where: str,
    strategies: Strategies,
    model: ModelConfig | None,
    at: faults.Path = (),
    *,
    in_order: bool = True,
) -> list[str]:
    """List everything that is wrong.

    `model` is None where it is not known, the list lies in the section `at`, and `in_order` means that `single` has to
    come first.
    """
    if model is not None and size_faults(where, model):
        model = None
    found, seen = [], dict[tuple[str, str], int]()
    for index, strategy in enumerate(strategies):
        if strategy is None:
            continue
        path: faults.Path = (*at, "strategies", index)
        shown = f"{strategy.name} {strategy.settings}".strip()
        if (first := seen.setdefault((strategy.name, strategy.settings), index)) != index:
            advice = "remove it or change its settings"
            if not isinstance(strategy, AutoConfig) and strategy.checkpoint:
                advice = "give it a `label`, since their folders have one name"
            found.append(faults.fault(where, path, f"different from strategies[{first}]", shown, advice))
        elif in_order and isinstance(strategy, SingleConfig) and not isinstance(strategies[0], SingleConfig):
            advice = "the others are compared with its answers and its latency"
            found.append(faults.fault(where, path, "another strategy: single comes first", shown, advice))
        if isinstance(strategy, AstraConfig) and strategy.coding == "entropy" and not _can_code():
            rule, advice = (
                "fixed where the package constriction is not installed",
                "pip install 'astra-testbed[entropy]'",
            )
            found.append(faults.fault(where, (*path, "coding"), rule, strategy.coding, advice))
        if isinstance(strategy, AutoConfig):
            within = strategy_faults(where, strategy.among, model, in_order=False)
            found += located(where, within, ("strategies",), (*path, "among"))
        elif model is not None:
            found += _code_faults(where, path, strategy, model) if isinstance(strategy, AstraConfig) else []
            found += _weight_faults(where, path, strategy, model)
    return found


def located(where: str, found: Sequence[str], old: faults.Path, new: faults.Path) -> list[str]:
    """Return faults as they read if what lies at `old` lay at `new`."""
    old_text, new_text = (f"{where}: {faults.dotted(path)}" for path in (old, new))
    return [text.replace(old_text, new_text, 1) if text.startswith(old_text) else text for text in found]


def _can_code() -> bool:
    return importlib.util.find_spec(_CODER) is not None


def bits_faults(where: str, strategies: Strategies, when: str, at: faults.Path = ()) -> list[str]:
    """List the strategies that leave bits open, which only a benchmark's ranks choose; `when` says why not here."""
    advice = "`astra bench` chooses them, and writes to ranks.csv what it took"
    return [
        faults.fault(where, (*at, "strategies", index, "code_bits"), f"stated {when}", strategy.code_bits, advice)
        for index, strategy in enumerate(strategies)
        if isinstance(strategy, AstraConfig) and strategy.chooses_bits
    ]


def _code_faults(where: str, path: faults.Path, strategy: AstraConfig, model: ModelConfig) -> list[str]:
    """Say where groups or bits do not fit the model."""
    found, bits, num_layers = group_faults(where, path, strategy, model), strategy.code_bits, model.preset.num_layers
    if isinstance(bits, tuple) and len(bits) != num_layers:
        rule, advice = f"a list of {num_layers} numbers, one for each layer", "or one number for all layers"
        found.append(faults.fault(where, (*path, "code_bits"), rule, list(bits), advice))
    return found


def group_faults(where: str, path: faults.Path, given: QuantisedSection, model: ModelConfig) -> list[str]:
    """Say where the groups of the section at `path` do not divide what they quantise."""
    width = given.quantised_width(model.preset.width, model.preset.kv_width)
    if width % given.num_groups == 0:
        return []
    quantised = "the model's width" if given.site == "input" else "the width of keys and values,"
    divisors = [candidate for candidate in range(1, width + 1) if width % candidate == 0]
    nearest = min(divisors, key=lambda n: abs(n - given.num_groups))
    rule = f"a divisor of {quantised} {width}"
    return [faults.fault(where, (*path, "num_groups"), rule, given.num_groups, f"the nearest is {nearest}")]


def _weight_faults(where: str, path: faults.Path, strategy: AnyStrategy, model: ModelConfig) -> list[str]:
    """Say what keeps `strategy.checkpoint` from being this model with other weights."""
    tuned, path = model_of(model, strategy), (*path, "checkpoint")
    if strategy.checkpoint is None:
        return []
    if tuned.folder is None:
        rule, advice = "a folder with config.json and model.safetensors", "relative paths begin where astra is started"
        return [faults.fault(where, path, rule, strategy.checkpoint, advice)]
    if missing := missing_files(tuned.folder):
        rule, advice = "a folder with config.json and model.safetensors", f"missing: {', '.join(missing)}"
        return [faults.fault(where, path, rule, strategy.checkpoint, advice)]
    known = model_faults(where, model)
    found = [text for text in size_faults(where, tuned) or model_faults(where, tuned) if text not in known]
    if not found and not known and _sizes(tuned) != _sizes(model):
        rule, advice = "a checkpoint of the model's sizes", f"the model has {_sizes(model)}"
        found = [faults.fault(where, path, rule, _sizes(tuned), advice)]
    return located(where, found, ("model", "checkpoint"), path)


def _sizes(model: ModelConfig) -> str:
    preset = model.preset
    sizes = f"{preset.num_layers} layers of width {preset.width} with {preset.num_heads} heads"
    if model.family in ("vit", "bert"):
        sizes += f" and {model.num_classes} classes"
    return f"{sizes} for {model.side} pixels" if model.family == "vit" else sizes
