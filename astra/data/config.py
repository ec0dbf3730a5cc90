"""Re-exports `DataConfig`, which other configs contain and which therefore lives below them in `astra.data_config`."""

from astra.data_config import DataConfig

__all__ = ["DataConfig"]
