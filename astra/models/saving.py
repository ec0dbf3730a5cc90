"""Write a model as others can read it: `config.json` and `model.safetensors`, and the tokenizer it was given.

The files are written beside their place and then moved there, so that a killed program leaves whole ones.
"""

import tempfile
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from astra.checkpoint import TOKENIZER_FILE
from astra.model_faults import CHECKPOINT_FILES

__all__ = ["save"]


def save(folder: Path, model: PreTrainedModel, tokenizer: str | None) -> None:
    """Write the checkpoint; see `models.save_checkpoint`."""
    folder.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        # one file whatever the size; what else the library writes (defaults of generation) nobody here reads
        model.save_pretrained(temporary, max_shard_size="1TB")
        if tokenizer is not None:
            (Path(temporary) / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
        readable = (Path(temporary) / "config.json").stat().st_mode
        for file in (Path(temporary) / name for name in (*CHECKPOINT_FILES, TOKENIZER_FILE)):
            if file.is_file():
                file.chmod(readable)  # the library lets only the owner read weights
                file.replace(folder / file.name)
