"""Read a benchmark's JSON file and find everything that is wrong with it.

    file --load_config--> text --parse_config--> BenchConfig, or ConfigError with every fault

Beyond what each field says about itself (`config`), compares fields with one another, with the folders they
name and with a checkpoint's own `config.json`. Loads no weights, no images and no torch.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from astra import faults
from astra.config import AccuracyConfig, AutoConfig, BenchConfig, Entry, GenerationConfig, InputConfig, ModelConfig
from astra.data_config import LanguageName
from astra.errors import ConfigError
from astra.generation_faults import generation_faults, unsuited_strategies
from astra.model_faults import model_faults
from astra.strategy_config import AnyStrategy
from astra.strategy_faults import Strategies, bits_faults, located, strategy_faults

__all__ = [
    "IMAGE_SUFFIXES",
    "TEXT_SUFFIXES",
    "Command",
    "folder_faults",
    "image_files",
    "load_config",
    "parse_config",
    "text_faults",
    "text_files",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
TEXT_SUFFIXES = (".md", ".rst", ".txt")
MIN_FILES = 2
"""In a folder of inputs: one to calibrate on and another to ask about."""

Command = Literal["bench", "generate", "fit"]
"""What the file is read for: `generation` is for `generate` alone, and `fit` takes the files of both."""


def load_config(path: Path, command: Command = "fit") -> BenchConfig:
    """Read and check the JSON file at `path`. Raises ConfigError with every fault found."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: the file must be readable text, got {error}; check the path"]) from error
    return parse_config(text, where=path.name, command=command)


def parse_config(text: str, *, where: str, command: Command = "fit") -> BenchConfig:
    """Check the JSON in `text`; `where` begins every message. Raises ConfigError with every fault found."""
    try:
        raw = json.loads(text, object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise ConfigError([f"{where}: the file must be JSON, got {error}; correct it there"]) from error
    config, found = None, []
    try:
        config = BenchConfig.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        found = faults.render(where, error, BenchConfig)
    if isinstance(raw, dict):
        found += _cross_faults(where, raw, command) + _generation_faults(where, raw, command)
    if found or config is None:
        raise ConfigError(found)
    return config


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that names a key twice; JSON readers otherwise drop the first value in silence."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} twice in one object")
    return dict(pairs)


_Checked = TypeVar("_Checked")


def _valid(kind: TypeAdapter[_Checked], raw: Any) -> _Checked | None:
    """Return the part of a file as a model, or None if it has faults, which are reported elsewhere."""
    try:
        return kind.validate_json(json.dumps(raw))
    except ValidationError:
        return None


def _cross_faults(where: str, raw: dict[str, Any], command: Command) -> list[str]:
    """Find what is wrong between fields, in those sections that are right by themselves."""
    entries = raw.get("strategies")
    strategies = [_valid(_STRATEGY, entry) for entry in entries] if isinstance(entries, list) else []
    model, images = _valid(_MODEL, raw.get("model")), _valid(_INPUT, raw.get("input", {}))
    found = [] if model is None else model_faults(where, model)
    found += strategy_faults(where, strategies, model)
    if raw.get("accuracy") is not None:
        found += _accuracy_faults(where, raw["accuracy"], strategies, model, command)
    if images is not None:
        found += _input_faults(where, images, model)
    return found


def _generation_faults(where: str, raw: dict[str, Any], command: Command) -> list[str]:
    """Find what is wrong with `generation`, if the command has any, and with the rest of the file for it."""
    given = raw.get("generation")
    if given is None:
        needed = f"{where}: generation must be given, got nothing; add the key 'generation'"
        return [needed] if command == "generate" else []
    if command == "bench":
        return [faults.fault(where, ("generation",), "left out", given, "or run `astra generate`")]
    entries, found = raw.get("strategies"), list[str]()
    failures = raw.get("failures")
    if isinstance(failures, dict) and failures.get("on_failure") in ("degrade", "replan"):
        path, policy = ("failures", "on_failure"), failures["on_failure"]
        found.append(faults.fault(where, path, "'fail' to generate", policy, "only benchmarks go on without a peer"))
    if raw.get("predict"):
        found.append(faults.fault(where, ("predict",), "left out to generate", raw["predict"], "or run `astra bench`"))
    if isinstance(entries, list):
        strategies = [_valid(_STRATEGY, entry) for entry in entries]
        found += unsuited_strategies(where, strategies) + bits_faults(where, strategies, "to generate")
    generation = _valid(_GENERATION, given)
    model = _valid(_MODEL, raw.get("model"))
    if generation is not None:
        found += generation_faults(where, generation, model if model and not model_faults(where, model) else None)
    return found


_STRATEGY: TypeAdapter[AnyStrategy | AutoConfig] = TypeAdapter(Entry)
_MODEL = TypeAdapter(ModelConfig)
_INPUT = TypeAdapter(InputConfig)
_GENERATION = TypeAdapter(GenerationConfig)
_ACCURACY = TypeAdapter(AccuracyConfig)


def _accuracy_faults(
    where: str, raw: Any, strategies: Strategies, model: ModelConfig | None, command: Command
) -> list[str]:
    """Find what is wrong with `accuracy` where each field alone is right."""
    if command == "generate":
        return [faults.fault(where, ("accuracy",), "left out", raw, "or run `astra bench`")]
    accuracy = _valid(_ACCURACY, raw)
    if accuracy is None:
        return []
    if any(isinstance(strategy, AutoConfig) for strategy in strategies):
        advice = "a choice by latency says nothing of a labelled set; name the strategies"
        return [faults.fault(where, ("accuracy",), "left out where a strategy is 'auto'", raw, advice)]
    if open_bits := bits_faults(where, strategies, "where there is accuracy"):
        return open_bits
    found = []
    if accuracy.model is not None:
        found += located(where, model_faults(where, accuracy.model), ("model",), ("accuracy", "model"))
    if accuracy.strategies is not None:
        names, given = ([each.name if each else "" for each in listed] for listed in (strategies, accuracy.strategies))
        if names != given and all(names):
            rule, advice = f"the same ones in the same order, {', '.join(names)}", "only their settings may differ"
            found.append(faults.fault(where, ("accuracy", "strategies"), rule, ", ".join(given), advice))
        found += strategy_faults(where, accuracy.strategies, accuracy.model or model, at=("accuracy",))
        found += bits_faults(where, accuracy.strategies, "for a labelled set", at=("accuracy",))
    elif accuracy.model is not None and not found:
        found += strategy_faults(where, strategies, accuracy.model)
    if accuracy.data.name in (*get_args(LanguageName), "stsb"):
        rule, advice = "a set of classes", "`astra evaluate` has its metric"
        found.append(faults.fault(where, ("accuracy", "data", "name"), rule, accuracy.data.name, advice))
    return found


def _input_faults(where: str, given: InputConfig, model: ModelConfig | None) -> list[str]:
    found = []
    if given.placement == "replicated" and given.encoding != "raw":
        advice = "set placement to 'terminal', or leave encoding out"
        rule = "'raw' where placement is 'replicated', since no image is sent"
        found.append(faults.fault(where, ("input", "encoding"), rule, given.encoding, advice))
    if model is not None and (of_other_kind := _kind_faults(where, given, model)):
        return found + of_other_kind
    if given.images != "sample":
        found += folder_faults(where, Path(given.images))
    if given.text != "sample":
        found += text_faults(where, Path(given.text))
    return found


def _kind_faults(where: str, given: InputConfig, model: ModelConfig) -> list[str]:
    """Find what is said of images to a model of texts, and the other way round."""
    unused, wanted = (("images", "encoding"), "text") if model.is_text else (("text",), "images")
    return [
        faults.fault(where, ("input", field), f"left out for family {model.family!r}", value, f"it reads {wanted}")
        for field in unused
        if (value := getattr(given, field)) != InputConfig.model_fields[field].default
    ]


def folder_faults(where: str, folder: Path) -> list[str]:
    """Say what keeps a folder from being `input.images`."""
    path: faults.Path = ("input", "images")
    if not folder.is_dir():
        rule, advice = "'sample' or a folder that exists", "relative paths begin where astra is started"
        return [faults.fault(where, path, rule, str(folder), advice)]
    names = [file.name for file in image_files(folder)]
    if len(names) < MIN_FILES:
        rule = f"a folder with at least {MIN_FILES} images ({' '.join(IMAGE_SUFFIXES)})"
        advice = f"{folder} has {len(names)}; calibration and requests never share an image"
        return [faults.fault(where, path, rule, names, advice)]
    return []


def image_files(folder: Path) -> list[Path]:
    """Return the images directly in `folder`, told by their suffix, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def text_faults(where: str, path: Path) -> list[str]:
    """Say what keeps a path from being `input.text`."""
    field: faults.Path = ("input", "text")
    if path.is_file():
        return []
    if not path.is_dir():
        rule, advice = "'sample', or a file or folder that exists", "relative paths begin where astra is started"
        return [faults.fault(where, field, rule, str(path), advice)]
    names = [file.name for file in text_files(path)]
    if len(names) < MIN_FILES:
        rule = f"a folder with at least {MIN_FILES} texts ({' '.join(TEXT_SUFFIXES)})"
        advice = f"{path} has {len(names)}; calibration and requests never share a text"
        return [faults.fault(where, field, rule, names, advice)]
    return []


def text_files(folder: Path) -> list[Path]:
    """Return the texts directly in `folder`, told by their suffix, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in TEXT_SUFFIXES)
