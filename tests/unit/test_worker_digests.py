"""What runs say about codes and answers, so that two of them can be compared bit for bit."""

from pathlib import Path

import pytest
import torch
from worker_worlds import served

from astra.codebook import GroupedCodebook, save_codebooks
from astra.config import AstraConfig, BenchConfig, InputConfig, ModelConfig, SequenceConfig
from astra.fit import cache_folder

MODEL = ModelConfig(size="tiny", image_size=64)
ASTRA = AstraConfig(num_groups=2, num_codewords=16)
CONFIG = BenchConfig(model=MODEL, strategies=(SequenceConfig(), ASTRA), requests=2, warmup=1, timeout_s=20.0)


def fit(seed: int) -> None:
    """Put drawn codewords where fitted ones would be."""
    preset, generator = MODEL.preset, torch.Generator().manual_seed(seed)
    size = (ASTRA.num_groups, ASTRA.num_codewords, preset.width // ASTRA.num_groups)
    drawn = [GroupedCodebook(torch.randn(size, generator=generator)) for _ in range(preset.num_layers)]
    save_codebooks(cache_folder(MODEL, ASTRA, InputConfig()), drawn)


def digests(out: Path) -> tuple[list[object], list[object]]:
    """Return those of the answers, and those of the codes rank by rank."""
    rows = served(CONFIG, out).notebooks[0].rows
    return [row["answer_digest"] for row in rows["requests"]], [row["codes_digest"] for row in rows["ranks"]]


def test_digests_are_those_of_answers_and_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))
    fit(seed=1)
    answers, codes = digests(tmp_path / "a")
    assert len(answers) == len(set(answers)) == 4
    assert codes[:2] == [None, None]
    assert len({codes[2], codes[3], None}) == 3
    assert digests(tmp_path / "b") == (answers, codes)
    fit(seed=2)
    changed_answers, changed_codes = digests(tmp_path / "c")
    assert changed_answers[:2] == answers[:2]
    assert not {*changed_answers[2:], *changed_codes[2:]} & {*answers, *codes[2:]}
