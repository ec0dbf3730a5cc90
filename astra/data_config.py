"""Which labelled set a model is trained or evaluated on, as a frozen and strict pydantic model. Pure, free of torch."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from astra import faults
from astra.section import Section

__all__ = ["BUILT_IN", "ClozeName", "DataConfig", "DataName", "GlueName", "ImageName", "LanguageName"]

ImageName = Literal["digits", "cifar10", "cifar100", "imagenet", "images"]
GlueName = Literal["sst2", "cola", "mrpc", "rte", "qnli", "qqp", "stsb", "mnli", "wnli"]
LanguageName = Literal["python-docs", "text", "wikitext2", "wikitext103", "ptb"]
ClozeName = Literal["cbt", "cbt-style"]
DataName = Literal[ImageName, GlueName, LanguageName, ClozeName]

BUILT_IN = ("digits", "python-docs")
"""Sets that are on every machine: parts of scikit-learn and of Python."""
_ONLY_LOCAL = ("images", "text", "cbt-style")
"""Sets of the user's own files, which no hub has by name."""
_SUBSETS: dict[str, tuple[str, ...]] = {
    "wikitext2": ("raw", "tokens"),
    "wikitext103": ("raw", "tokens"),
    "mnli": ("matched", "mismatched"),
    "cbt": ("NE", "CN", "V", "P"),
    "cbt-style": ("CN", "V", "P"),
}


class DataConfig(Section):
    """A set by name, and where its files are."""

    name: DataName
    folder: str | None = Field(default=None, min_length=1)
    """The set's files in a published format; None for built-in sets, and to fetch the others by name."""
    subset: str | None = None
    """mnli: matched (default) or mismatched; cbt: the kind of the missing word, NE, CN, V or P; cbt-style: CN, V or P;
    wikitext: raw or tokens, which has <unk> for rare words (default: raw where it is there)."""
    tokenizer: str | None = Field(default=None, min_length=1)
    """For texts, where the model's checkpoint has none: a `tokenizer.json`, a BERT `vocab.txt`, or a folder with one of
    them or with GPT-2's `encoder.json` and `vocab.bpe`."""

    @model_validator(mode="after")
    def _fields_fit_the_set(self) -> Self:
        known = _SUBSETS.get(self.name, ())
        if self.subset is not None and self.subset not in known:
            rule = f"one of {', '.join(known)} for {self.name}" if known else f"left out for {self.name}"
            raise faults.rule_error(f"a set whose subset is {rule}", f"got subset {self.subset!r}; correct it")
        if self.subset is None and self.name in ("cbt", "cbt-style"):
            raise faults.rule_error("a set with a subset", f"add subset: one of {', '.join(known)}")
        if self.folder is not None and self.name in BUILT_IN:
            raise faults.rule_error("a set of files where folder is given", f"{self.name} needs none; leave it out")
        if self.folder is None and self.name in _ONLY_LOCAL:
            raise faults.rule_error("a set with a folder", f"{self.name} stands for files of yours; add folder")
        if self.tokenizer is not None and self.name in get_args(ImageName):
            raise faults.rule_error("a set of texts where tokenizer is given", f"{self.name} are images; leave it out")
        return self
