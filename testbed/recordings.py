"""Put the recordings that a scenario names by file into the scenario itself.

    {model: recorded, file: losses.txt}  -->  {model: recorded, file: losses.txt, pattern: "0010..."}
    trace: {file: lte.csv, format: csv}  -->  trace: {file: lte.csv, format: csv, text: "0,5\n1,10\n"}

What is in the scenario needs no file any more: it can be written into a run folder, sent, and run again as it was.
Reads files; knows where in a scenario recordings may stand, and not what else is there.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError

from testbed.faults import Location, fault_at, violation
from testbed.loss import PATTERN_LENGTH

__all__ = ["inline", "pattern_of"]

FILE_LIMIT_BYTES = 16 << 20


def inline(
    tree: Mapping[str, Any], folder_of: Callable[[Location], Path]
) -> tuple[dict[str, Any], list[InitErrorDetails]]:
    """Return the tree with every recording read, and the faults of those that cannot be.

    `folder_of` says to which folder the file name at a location is relative. The tree may hold anything; what is not a
    recording stays as it is, for the schema to judge.
    """
    faults: list[InitErrorDetails] = []

    def replace(value: Any, location: tuple[str | int, ...]) -> Any:
        if isinstance(value, list):
            return [replace(item, (*location, position)) for position, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        replaced = {key: replace(item, (*location, key)) for key, item in value.items()}
        if location[0] == "events" and location[-1:] == ("trace",) and "text" not in value:
            return {**replaced, **_read(value, "text", str, None, location)}
        if location[-1:] == ("loss",) and value.get("model") == "recorded" and "pattern" not in value:
            return {**replaced, **_read(value, "pattern", pattern_of, "0", location)}
        return replaced

    def _read(
        value: Mapping[Any, Any], key: str, parse: Callable[[str], Any], stand_in: Any, location: tuple[str | int, ...]
    ) -> dict[str, Any]:
        name, place = value.get("file"), (*location, "file")
        if not isinstance(name, str) or not name or "\0" in name:
            return {}
        try:
            return {key: parse(_text(folder_of(place) / name))}
        except PydanticCustomError as error:
            faults.append(fault_at(place, name, error))
            return {} if stand_in is None else {key: stand_in}

    result = dict(tree)
    for key in ("links", "events"):
        if key in result:
            result[key] = replace(result[key], (key,))
    return result, faults


def pattern_of(text: str) -> str:
    """Read a recorded loss: a 0 or 1 a packet, or the positions of the lost ones after a line `cycle <packets>`.

    White space does not count, and a # begins a remark. Raises PydanticCustomError, a fault of the file.
    """
    words = [word for line in text.splitlines() for word in line.partition("#")[0].split()]
    if words[:1] == ["cycle"]:
        return _from_positions(words[1:])
    pattern = "".join(words)
    if not pattern or set(pattern) - {"0", "1"}:
        todo = "write a 0 or 1 for each packet, or `cycle <packets>` and then the positions of the lost ones"
        raise violation("a file of 0 and 1", todo)
    if len(pattern) > PATTERN_LENGTH:
        raise violation(f"a recording of at most {PATTERN_LENGTH} packets", f"shorten its {len(pattern)}")
    return pattern


def _from_positions(words: list[str]) -> str:
    """Return the pattern of `words`: its length, then the positions that are lost, from 0."""
    wrong = next((word for word in words if not (word.isascii() and word.isdigit())), None)
    if wrong is not None or not words:
        raise violation("a file of whole numbers after `cycle`", f"correct {wrong!r}" if words else "add the length")
    length, *positions = map(int, words)
    if not 1 <= length <= PATTERN_LENGTH:
        raise violation(f"a recording of 1 to {PATTERN_LENGTH} packets", f"correct `cycle {length}`")
    if outside := [position for position in positions if position >= length]:
        raise violation(f"a file of positions below its cycle, {length}", f"correct {outside[0]}; positions begin at 0")
    lost = set(positions)
    return "".join("1" if position in lost else "0" for position in range(length))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > FILE_LIMIT_BYTES:
            raise violation(f"a file of at most {FILE_LIMIT_BYTES >> 20} MiB", f"shorten {path}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise violation("a text file", f"{path} is not UTF-8") from None
    except OSError as error:
        todo = f"{path}: {error.strerror}; paths are relative to the scenario file"
        raise violation("a file that can be read", todo) from None
