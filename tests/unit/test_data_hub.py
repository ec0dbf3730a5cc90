"""Sets by name: what the `datasets` library gives becomes what the published files become; a fake one stands in."""

import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from astra.config import ModelConfig
from astra.data import DataConfig, Examples, Split, load_examples
from astra.errors import ConfigError
from astra.tokenizer import ByteTokenizer

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class FakeTable:
    """As much of a `datasets.Dataset` as is used."""

    def __init__(self, rows: Sequence[dict[str, Any]]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def select(self, numbers: Sequence[int]) -> "FakeTable":
        return FakeTable([self._rows[number] for number in numbers])


class FakeHub:
    """Stands for the library: gives `rows`, or raises, and keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows: Sequence[dict[str, Any]] = []
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        module = ModuleType("datasets")
        module.load_dataset = self._load  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)

    def _load(self, path: str, name: str | None, *, split: str, revision: str | None) -> FakeTable:
        self.asked.append((path, name, split, revision))
        if self.error:
            raise self.error
        return FakeTable(self.rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(monkeypatch)


def load(name: str, split: Split, limit: int | None = None, **more: Any) -> Examples:
    subset = more.pop("subset", None)
    data = DataConfig.model_validate({"name": name, "subset": subset})
    return load_examples(data, ModelConfig.model_validate({"size": "tiny", **more}), split, limit=limit)


def text_of(ids: Any) -> str:
    return ByteTokenizer().decode(int(each) for each in np.ravel(ids) if 0 <= each < 256)


VIT: dict[str, Any] = {"image_size": 32}
BERT: dict[str, Any] = {"family": "bert", "num_tokens": 40}
GPT2: dict[str, Any] = {"family": "gpt2", "num_tokens": 16}


@pytest.mark.parametrize(("name", "label", "classes"), [("cifar10", "label", 10), ("cifar100", "fine_label", 100)])
def test_cifar_by_name_is_parted_as_from_files(hub: FakeHub, name: str, label: str, classes: int):
    hub.rows = [{"img": Image.new("RGB", (32, 32), (row, 0, 0)), label: row % 10} for row in range(30)]
    train, validation, test = (load(name, split, num_labels=classes, **VIT) for split in SPLITS)
    assert [len(part.inputs) for part in (train, validation, test)] == [27, 3, 30]
    assert validation.inputs[:, 0, 0, 0].tolist() == [27, 28, 29]
    assert train.labels[:11].tolist() == [*range(10), 0]
    assert hub.asked == [(f"uoft-cs/{name}", None, split, None) for split in ("train", "train", "test")]


def test_imagenet_by_name_is_cropped_and_has_no_test(hub: FakeHub):
    hub.rows = [{"image": Image.new("L", (80, 60), 7 * row), "label": row} for row in range(3)]
    examples = load("imagenet", "validation", limit=2, num_labels=1000, **VIT)
    assert examples.inputs.shape == (2, 3, 32, 32)
    assert examples.inputs[1].max() == 7
    with pytest.raises(ConfigError, match="labels, got none; those of imagenet are not published"):
        load("imagenet", "test", num_labels=1000, **VIT)


def test_glue_by_name_reads_its_columns(hub: FakeHub):
    hub.rows = [{"premise": "one ", "hypothesis": "two", "label": 2, "idx": 0}]
    examples = load("mnli", "validation", subset="mismatched", num_labels=3, **BERT)
    assert text_of(examples.inputs) == "onetwo"
    assert examples.labels.tolist() == [2]
    assert hub.asked == [("nyu-mll/glue", "mnli", "validation_mismatched", None)]
    hub.rows = [{"sentence1": "one", "sentence2": "two", "label": 3.25}]
    assert load("stsb", "train", num_labels=1, **BERT).labels.tolist() == [3.25]
    hub.rows = [{"sentence": "one", "label": -1}]
    with pytest.raises(ConfigError, match="those of cola are not published, use validation"):
        load("cola", "test", num_labels=2, **BERT)


def test_texts_by_name_are_the_published_lines(hub: FakeHub):
    hub.rows = [{"text": " = Title = \n"}, {"text": ""}, {"text": " Words . \n"}]
    examples = load("wikitext103", "test", **GPT2)
    assert text_of(np.concatenate([examples.inputs.ravel()[:1], examples.labels.ravel()])) == " = Title = \n Words . \n"
    load("wikitext2", "train", subset="tokens", **GPT2)
    hub.rows = [{"sentence": "a b"}, {"sentence": "c"}]
    examples = load("ptb", "validation", **GPT2)
    assert text_of(np.concatenate([examples.inputs.ravel()[:1], examples.labels.ravel()])) == " a b \n c \n"
    assert [asked[:3] for asked in hub.asked] == [
        ("Salesforce/wikitext", "wikitext-103-raw-v1", "test"),
        ("Salesforce/wikitext", "wikitext-2-v1", "train"),
        ("ptb-text-only/ptb_text_only", "penn_treebank", "validation"),
    ]


def test_cbt_by_name_makes_questions(hub: FakeHub):
    row = {"sentences": ["He ran ."] * 20, "question": "He XXXXX .", "answer": "c", "options": list("abcdefghij")}
    hub.rows = [row, row]
    examples = load("cbt", "validation", limit=1, subset="V", family="gpt2", num_tokens=300)
    assert examples.inputs.shape == (1, 10, 300)
    assert examples.answers is not None
    assert examples.answers.tolist() == [2]
    hub.rows = [{**row, "options": ["a"]}]
    with pytest.raises(ConfigError, match=r"question 1 of cbt must have 10 candidates with the answer 'c'"):
        load("cbt", "test", subset="V", family="gpt2", num_tokens=300)


def test_missing_library_and_missing_set_are_said(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    hub.error = ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub\nand more")
    with pytest.raises(ConfigError) as caught:
        load("sst2", "train", num_labels=2, **BERT)
    assert caught.value.faults == (
        "data: name must be a set that can be fetched, got sst2 from nyu-mll/glue (Couldn't reach 'nyu-mll/glue' on "
        "the Hub); try again, or name the folder of the set's files",
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError) as caught:
        load("sst2", "train", num_labels=2, **BERT)
    assert caught.value.faults == (
        "data: folder must be given where the library `datasets` is missing, got sst2 by name; "
        "pip install 'astra-testbed[hub]', or name the folder of the set's files",
    )
