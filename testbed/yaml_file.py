"""Read a YAML file, and what it `extends`, into one tree of plain values.

    quickstart.yaml --extends--+
                               merge --> Document(tree, layers)
    lossless.yaml -------------+

YAML is read by version 1.2's rules: `1e6` is a number, `no` and `10:30` are text, and a key may stand only once.
Mappings merge key by key, everything else (lists too) is replaced. Does not know what the keys mean.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from testbed.errors import InputError
from testbed.faults import Location, show

__all__ = ["EXTENDS", "Document", "merge", "read"]

EXTENDS = "extends"


@dataclass(frozen=True)
class Document:
    """A merged tree that remembers which file said what."""

    tree: dict[Any, Any]
    """What all layers say together, without `extends`."""
    layers: tuple[tuple[Path, Mapping[Any, Any]], ...]
    """File and content of every layer, the file that was asked for first, its most distant base last."""

    def origin(self, location: Location) -> Path:
        """Name the file that holds the value at `location`, or the nearest mapping around it."""
        for length in range(len(location), 0, -1):
            for path, content in self.layers:
                if _holds(content, location[:length]):
                    return path
        return self.layers[0][0]


def read(path: Path) -> Document:
    """Read `path` and every file it extends.

    Raises InputError if a file cannot be read, is not YAML, is not a mapping, or extends itself.
    """
    layers: list[tuple[Path, Mapping[Any, Any]]] = []
    current: Path | None = path
    while current is not None:
        content = _read_mapping(current)
        layers.append((current, content))
        current = _base_of(content, [layer for layer, _ in layers])
    tree: dict[Any, Any] = {}
    for _, content in reversed(layers):
        tree = merge(tree, content)
    tree.pop(EXTENDS, None)
    return Document(tree, tuple(layers))


def _base_of(content: Mapping[Any, Any], chain: list[Path]) -> Path | None:
    """Return the file that the last of `chain` extends, or None; raise InputError if there is no such file."""
    if EXTENDS not in content:
        return None
    child, name = chain[-1], content[EXTENDS]
    if not isinstance(name, str) or not name:
        raise _fault(child, EXTENDS, "the name of another scenario file", show(name), "write extends: base.yaml")
    base = child.parent / name
    if any(base.resolve() == earlier.resolve() for earlier in chain):
        way = " -> ".join(str(each) for each in [*chain, base])
        raise _fault(child, EXTENDS, "a file that does not lead back here", show(name), f"break the circle {way}")
    if not base.is_file():
        todo = f"there is no file {base}; paths are relative to {child}"
        raise _fault(child, EXTENDS, "an existing file", show(name), todo)
    return base


def _read_mapping(path: Path) -> Mapping[Any, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _fault(path, "the file", "UTF-8 text", f"byte {error.start}", "save it as UTF-8") from None
    except OSError as error:
        raise _fault(path, "the file", "readable", error.strerror or str(error), "check the path") from None
    content = _parse(path, text)
    if content is None:
        raise _fault(path, "the file", "a mapping", "nothing", "add at least name, devices and workload")
    if not isinstance(content, dict):
        raise _fault(path, "the file", "a mapping", show(content), "write keys as `key: value` lines")
    try:
        json.dumps(content, default=str, skipkeys=True)  # walks everything
    except (ValueError, RecursionError):
        raise _fault(path, "the file", "a finite tree", "an alias inside its own anchor", "remove it") from None
    return content


def _parse(path: Path, text: str) -> object:
    reader = YAML(typ="safe", pure=True)
    try:
        return reader.load(text)
    except DuplicateKeyError as error:
        problem = str(error.problem).split(" (original")[0].removeprefix("found ")
        raise _fault(path, _place(error), "a key that stands once", problem, "remove one of the two") from None
    except MarkedYAMLError as error:
        problem = f"{error.problem}" + (f" ({error.context})" if error.context else "")
        raise _fault(path, _place(error), "valid YAML", problem, _syntax_hint(error)) from None
    except (YAMLError, ValueError) as error:  # characters and numbers that cannot be
        problem = str(error).splitlines()[0]
        raise _fault(path, "the file", "valid YAML", problem, "correct that value") from None
    except RecursionError:
        raise _fault(path, "the file", "valid YAML", "thousands of nested brackets", "nest less") from None


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"


def _syntax_hint(error: MarkedYAMLError) -> str:
    problem, context = str(error.problem), str(error.context)
    if "alias" in context:
        return 'put a star in quotes: "*"'
    if "'\\t'" in problem:
        return "indent with spaces, not tabs"
    if "mapping values" in problem:
        return "put text that holds a colon and a space in quotes, and check the indentation"
    if "another document" in problem:
        return "keep one scenario a file, without a second `---` line"
    return "check brackets, quotes and indentation there and on the line before"


def merge(base: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return `base` with `over` merged over it: mappings key by key, everything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _holds(tree: object, location: Location) -> bool:
    for part in location:
        is_key = isinstance(tree, dict) and part in tree
        is_position = isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        if not (is_key or is_position):
            return False
        tree = tree[part]  # type: ignore[index]  # one of the two holds
    return True


def _fault(path: Path, where: str, rule: str, got: str, todo: str) -> InputError:
    return InputError([f"{path}: {where} must be {rule}, got {got}; {todo}"])
