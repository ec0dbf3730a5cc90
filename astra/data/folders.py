"""Where the files of a set are, below the folder that the user names; and texts, with faults that name the line."""

from pathlib import Path

from astra.config_file import TEXT_SUFFIXES
from astra.data_config import DataConfig
from astra.errors import ConfigError

__all__ = ["absent", "read_lines", "read_text", "set_folder", "text_paths", "unlabelled"]

_CALLED: dict[str, tuple[str, ...]] = {
    "cifar10": ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("cifar100", "cifar-100-binary", "cifar-100-python"),
    "imagenet": ("imagenet", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"),
    "sst2": ("SST-2", "glue/SST-2"),
    "cola": ("CoLA", "glue/CoLA"),
    "mrpc": ("MRPC", "glue/MRPC"),
    "rte": ("RTE", "glue/RTE"),
    "qnli": ("QNLI", "glue/QNLI"),
    "qqp": ("QQP", "glue/QQP"),
    "stsb": ("STS-B", "glue/STS-B"),
    "mnli": ("MNLI", "glue/MNLI"),
    "wnli": ("WNLI", "glue/WNLI"),
    "cbt": ("cbt", "CBTest/data", "data"),
    "cbt-style": ("cbt", "CBTest/data", "data"),
    "wikitext2": ("wikitext2", "wikitext-2", "wikitext-2-raw"),
    "wikitext103": ("wikitext103", "wikitext-103", "wikitext-103-raw"),
    "ptb": ("ptb", "simple-examples/data", "data"),
}
"""How published archives call the folder of a set; where none is there, the named folder itself is it."""


def set_folder(data: DataConfig) -> Path:
    """Return the folder that holds the set's files.

    Raises:
        ConfigError: The named folder is not there.
    """
    assert data.folder is not None, "only for local files"
    named = Path(data.folder)
    if not named.exists():
        raise ConfigError(
            [f"data: folder must exist, got {data.folder!r}; name where the files of {data.name} are, or leave it out"]
        )
    return next((named / each for each in _CALLED.get(data.name, ()) if (named / each).is_dir()), named)


def absent(path: Path, advice: str) -> str:
    """Say that a file is missing, and what the folder has instead."""
    folder = path.parent
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    return f"{path}: file must exist, got {shown} in its folder; {advice}"


def unlabelled(where: object, name: str) -> ConfigError:
    """Make the error for a test split whose labels only a server of its makers knows."""
    return ConfigError(
        [f"{where}: test split must have labels, got none; those of {name} are not published, use validation"]
    )


def read_text(path: Path) -> str:
    """Return a whole file of UTF-8, line ends as they are.

    Raises:
        ConfigError: It cannot be read; names the line where it is no UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: file must be readable, got {error.strerror}; check its permissions"]) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            [f"{path}: row {row} must be UTF-8, got the byte {content[error.start]:#04x}; convert the file"]
        ) from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file of UTF-8, told apart by newlines alone; raises as `read_text`."""
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def text_paths(path: Path) -> list[Path]:
    """Return `path` if it is a file; of a folder, its texts, by suffix, in the order of their names.

    Raises:
        ConfigError: There are none.
    """
    if path.is_file():
        return [path]
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in TEXT_SUFFIXES)
    if not found:
        raise ConfigError([f"{path}: folder must hold texts ({' '.join(TEXT_SUFFIXES)}), got none; name another"])
    return found
