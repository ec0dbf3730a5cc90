"""Read a YAML file that holds one mapping, by YAML 1.2's rules, in which JSON is YAML too. Does not know its keys."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from astra.errors import ConfigError

__all__ = ["read_yaml"]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or holds something else.
    """
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: the file must be readable text, got {error}; check the path"]) from error
    except (MarkedYAMLError, YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError([f"{path}: the file must be YAML, got {problem}; correct it there"]) from error
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: the file must be a mapping of keys to values, got {tree!r}; see recipes/"])
    return tree
