"""GLUE: every published layout gives its sentences and labels; sentences become ids as BERT reads them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from astra.config import ModelConfig
from astra.data import DataConfig, Examples, Split, load_examples
from astra.errors import ConfigError
from astra.tokenizer import ByteTokenizer

SEPARATOR, PAD = ByteTokenizer.separator_id, ByteTokenizer.pad_id


def load(name: str, folder: Path, split: Split = "train", length: int = 40, **more: object) -> Examples:
    labels = {"stsb": 1, "mnli": 3}.get(name, 2)
    model = ModelConfig(family="bert", size="tiny", num_tokens=length, num_labels=labels)
    limit = more.pop("limit", None)
    data = DataConfig.model_validate({"name": name, "folder": str(folder), **more})
    return load_examples(data, model, split, limit=limit)  # type: ignore[arg-type]


def faults(name: str, folder: Path, split: Split = "train", **more: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(name, folder, split, **more)  # type: ignore[arg-type]
    return caught.value.faults


def texts(examples: Examples) -> list[list[str]]:
    """Return the sentences of each row, told apart by separators."""
    found = []
    for row in examples.inputs:
        ids = [int(each) for each in row if each != PAD]
        assert ids[-1] == SEPARATOR
        cuts = [-1, *(place for place, each in enumerate(ids) if each == SEPARATOR)]
        parts = [ids[start + 1 : stop] for start, stop in pairwise(cuts)]
        found.append([ByteTokenizer().decode(part) for part in parts])
    return found


def write(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


MNLI_TREES = "index\tpromptID\tpairID\tgenre\ts1_binary\ts2_binary\ts1_parse\ts2_parse\tsentence1\tsentence2"
PUBLISHED = [
    ("sst2", "SST-2/train.tsv", "train", ["sentence\tlabel", "so good \t1", "bad\t0"], [["so good"], ["bad"]], [1, 0]),
    (
        "cola",
        "CoLA/train.tsv",
        "train",
        ["gj04\t1\t\tShe ran.", "gj04\t0\t*\tRan she."],
        [["She ran."], ["Ran she."]],
        [1, 0],
    ),
    ("cola", "CoLA/dev.tsv", "validation", ["source\tlabel\torig\tsentence", "x\t0\t*\tRan."], [["Ran."]], [0]),
    (
        "mrpc",
        "MRPC/test.tsv",
        "test",
        ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\tHe "ran\tHe fled'],
        [['He "ran', "He fled"]],
        [1],
    ),
    (
        "rte",
        "RTE/dev.tsv",
        "validation",
        ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment"],
        [["a", "b"]],
        [1],
    ),
    (
        "qnli",
        "QNLI/train.tsv",
        "train",
        ["index\tquestion\tsentence\tlabel", "0\tq?\tb\tentailment"],
        [["q?", "b"]],
        [0],
    ),
    (
        "qqp",
        "QQP/dev.tsv",
        "validation",
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "5\t1\t2\tq?\tr?\t1"],
        [["q?", "r?"]],
        [1],
    ),
    (
        "stsb",
        "STS-B/train.tsv",
        "train",
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tg\tf\ty\t1\tn\tn\ta\tb\t3.800",
        ],
        [["a", "b"]],
        [3.8],
    ),
    (
        "stsb",
        "sts-test.csv",
        "test",
        ["g\tf\ty\t1\t5.000\ta\tb", "g\tf\ty\t2\t0\tc\td\tlicence\tx"],
        [["a", "b"], ["c", "d"]],
        [5, 0],
    ),
    (
        "mnli",
        "MNLI/train.tsv",
        "train",
        [f"{MNLI_TREES}\tlabel1\tgold_label", 8 * "0\t" + "a\tb\tneutral\tneutral"],
        [["a", "b"]],
        [1],
    ),
    (
        "mnli",
        "MNLI/dev_matched.tsv",
        "validation",
        [f"{MNLI_TREES}\tl1\tl2\tgold_label", 8 * "0\t" + "a\tb\tx\tx\tcontradiction"],
        [["a", "b"]],
        [2],
    ),
    ("wnli", "glue/WNLI/train.tsv", "train", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\t1"], [["a", "b"]], [1]),
]


@pytest.mark.parametrize(("name", "file", "split", "rows", "sentences", "labels"), PUBLISHED)
def test_published_file_gives_sentences_and_labels(
    tmp_path: Path, name: str, file: str, split: Split, rows: list[str], sentences: list[list[str]], labels: list[float]
):
    write(tmp_path / file, *rows)
    examples = load(name, tmp_path, split)
    assert texts(examples) == sentences
    assert np.allclose(examples.labels, labels)
    assert examples.labels.dtype == (np.float32 if name == "stsb" else np.int64)


def test_metrics_are_the_published_ones(tmp_path: Path):
    for number, (name, file, split, rows, _, _) in enumerate(PUBLISHED):
        write(tmp_path / str(number) / file, *rows)
        examples = load(name, tmp_path / str(number), split)  # type: ignore[arg-type]
        wanted = {"cola": ("matthews",), "stsb": ("pearson", "spearman")}
        pairs = dict.fromkeys(("mrpc", "qqp"), ("accuracy", "f1"))
        assert examples.metrics == {**wanted, **pairs}.get(name, ("accuracy",))
        assert examples.task == ("regression" if name == "stsb" else "classification")


def test_mnli_mismatched_has_a_file_of_its_own(tmp_path: Path):
    for kind in ("matched", "mismatched"):
        write(tmp_path / f"dev_{kind}.tsv", "sentence1\tsentence2\tgold_label", f"{kind}\tb\tneutral")
    assert texts(load("mnli", tmp_path, "validation"))[0][0] == "matched"
    assert texts(load("mnli", tmp_path, "validation", subset="mismatched"))[0][0] == "mismatched"


@pytest.mark.parametrize("with_ids", [True, False])
def test_raw_mrpc_is_parted_as_glue_did(tmp_path: Path, with_ids: bool):
    rows = [f"1\t{number}\t{number + 100}\ta{number}\tb" for number in range(20)]
    write(tmp_path / "msr_paraphrase_train.txt", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows)
    if with_ids:
        write(tmp_path / "dev_ids.tsv", "3\t103", "5\t105", "7\t9")
    wanted = ["a3", "a5"] if with_ids else ["a18", "a19"]
    assert [row[0] for row in texts(load("mrpc", tmp_path, "validation"))] == wanted
    assert len(load("mrpc", tmp_path).inputs) == 18


def test_limit_takes_the_first_rows(tmp_path: Path):
    write(tmp_path / "train.tsv", "sentence\tlabel", *(f"s{number}\t1" for number in range(9)))
    assert texts(load("sst2", tmp_path, limit=2)) == [["s0"], ["s1"]]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [("aaaa", "bbbb", ("aaaa", "bbbb")), ("a" * 20, "bb", ("a" * 6, "bb")), ("aa", "b" * 20, ("aa", "b" * 6)),
     ("a" * 9, "b" * 20, ("aaaa", "bbbb"))],
)  # fmt: skip
def test_longer_sentence_of_a_pair_is_cut_first(tmp_path: Path, first: str, second: str, kept: tuple[str, str]):
    write(tmp_path / "train.tsv", "sentence1\tsentence2\tlabel", f"{first}\t{second}\t0")
    assert texts(load("wnli", tmp_path, length=10)) == [list(kept)]


def test_faulty_rows_are_all_named(tmp_path: Path):
    path = tmp_path / "train.tsv"
    write(path, "sentence1\tsentence2\tlabel", "a\tb\t0", "a\tb", "a\tb\t2", "a\tb\tc\t1")
    assert faults("wnli", tmp_path) == (
        f"{path}: label of row 4 must be one of 0, 1, got '2'; correct the row",
        f"{path}: row 3 must have 3 columns, got 2; cells have no tabs or line breaks; copy the published file",
        f"{path}: row 5 must have 3 columns, got 4; cells have no tabs or line breaks; copy the published file",
    )
    write(path, "sentence1\tsentence2\tlabel", *["a\tb\t7"] * 30)
    assert len(found := faults("wnli", tmp_path)) == 11
    assert found[-1] == f"{path}: rows must be right, got 20 more that are not; correct them too"


def test_scores_out_of_range_are_named(tmp_path: Path):
    write(tmp_path / "train.tsv", "sentence1\tsentence2\tscore", "a\tb\t5.1", "a\tb\tx")
    assert [fault.split(": ")[1] for fault in faults("stsb", tmp_path)] == [
        "score of row 2 must be a number from 0.0 to 5.0, got '5.1'; correct the row",
        "score of row 3 must be a number from 0.0 to 5.0, got 'x'; correct the row",
    ]


def test_broken_rows_are_left_out_of_qqp_alone_and_only_if_few(tmp_path: Path):
    rows = ["1\t2\t3\tq\tr\t0"] * 2000
    rows[7] = "1\t2\t3\tq"
    write(tmp_path / "train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", *rows)
    assert len(load("qqp", tmp_path).inputs) == 1999
    write(tmp_path / "train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", *rows[:20])
    assert "row 9 must have 6 columns, got 4" in faults("qqp", tmp_path)[0]


def test_file_faults_say_what_to_do(tmp_path: Path):
    write(tmp_path / "other.tsv", "x")
    assert faults("rte", tmp_path) == (
        f"{tmp_path / 'train.tsv'}: file must exist, got other.tsv in its folder; copy GLUE's files of rte there",
    )
    path = tmp_path / "train.tsv"
    write(path, "sentence1\tlabel", "a\t0")
    assert (
        "row 1 must name the columns sentence1, sentence2, label, got ['sentence1', 'label']"
        in faults("rte", tmp_path)[0]
    )
    path.write_bytes(b"sentence1\tsentence2\tlabel\na\tb\tentailment\na\t\xff\tentailment\n")
    assert faults("rte", tmp_path) == (f"{path}: row 3 must be UTF-8, got the byte 0xff; convert the file",)
    write(path, "sentence1\tsentence2\tlabel")
    assert "file must have rows, got none" in faults("rte", tmp_path)[0]
    write(tmp_path / "test.tsv", "index\tsentence1\tsentence2", "0\ta\tb")
    assert "test split must have labels, got none" in faults("rte", tmp_path, "test")[0]


def test_texts_too_short_for_a_pair_are_refused(tmp_path: Path):
    write(tmp_path / "train.tsv", "sentence1\tsentence2\tlabel", "a\tb\t0")
    assert faults("wnli", tmp_path, length=3)[0].startswith("model: num_tokens must be at least 4 for sentences, got 3")
