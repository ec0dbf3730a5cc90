"""Python's own documentation as text: strings of its standard library's sources, and its help topics.

    modules and packages, in the order of their names --docstrings--> one passage each
    pydoc's topics (the language reference)                        --> one passage each

Of ten passages in turn, eight are train, the ninth validation, the tenth test. The text depends on the version of
Python; it is on every machine that has one. Tests of the library and installed packages are left out.
"""

import ast
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

from astra.data.labelled import Split

__all__ = ["docstrings", "python_docs"]

_TURNS: dict[Split, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
_NUM_TURNS = 10
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "turtledemo", "lib2to3", "pydoc_data"}
_PARSER = threading.Lock()
"""CPython 3.11's parser counts the depth of all threads' trees as one (SystemError: recursion depth mismatch)."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_docs(split: Split) -> Iterator[str]:
    """Yield the passages of `split`, each with an empty line at its end."""
    from pydoc_data.topics import topics  # 700 KB of text; only needed here

    root = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts))
    for number, source in enumerate(sources):
        if number % _NUM_TURNS in _TURNS[split]:
            yield _passage(source)
    for number, name in enumerate(sorted(topics)):
        if number % _NUM_TURNS in _TURNS[split]:
            yield topics[name].strip() + "\n\n"


def docstrings(source: Path) -> list[str]:
    """Return the documentation of a module, its classes and its functions, without those that are empty."""
    with _PARSER:
        tree = ast.parse(source.read_bytes())
    found = [ast.get_docstring(part) for part in ast.walk(tree) if isinstance(part, _DOCUMENTED)]
    return [text for text in found if text]


def _passage(source: Path) -> str:
    return "".join(f"{text.strip()}\n\n" for text in docstrings(source) if text.strip())
