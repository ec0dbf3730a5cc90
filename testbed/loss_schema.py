"""The `loss` block of a link, in percent: one block a model, chosen by the key `model`.

    {model: gilbert_elliott, enter_pct: 1, ...} --LossModel--> GilbertElliottLoss --.model_in_si()--> testbed.loss

A further model is one block here, one entry in `MODELS` and one case in `testbed.loss`.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails

from testbed import loss
from testbed.block import OMITTABLE, Block, Rule, faults_error
from testbed.faults import fault_at, violation
from testbed.fields import LossPct, Text

__all__ = ["BernoulliLoss", "GilbertElliottLoss", "LossModel", "RecordedLoss"]

ChangePct = Annotated[
    float,
    Field(ge=0.01, le=100),
    Rule("a number from 0.01 to 100", "it counts percent: 1 is one packet in a hundred", "number"),
]


class BernoulliLoss(Block):
    """Loss in which every packet has the same chance, whatever happened to the one before."""

    model: Literal["bernoulli"]
    """Name of the loss model: bernoulli."""
    loss_pct: LossPct
    """Packets lost, in percent."""

    def model_in_si(self) -> loss.Loss:
        """Return the model in fractions."""
        return loss.Bernoulli(self.loss_pct / 100)


class GilbertElliottLoss(Block):
    """Loss in bursts: a link is in a good or a bad state and may change it before each packet."""

    model: Literal["gilbert_elliott"]
    """Name of the loss model: gilbert_elliott."""
    enter_pct: ChangePct
    """Chance to go from the good state to the bad one, in percent."""
    leave_pct: ChangePct
    """Chance to go back, in percent; a bad state lasts 100 / leave_pct packets on average."""
    bad_loss_pct: LossPct
    """Packets lost in the bad state, in percent."""
    good_loss_pct: LossPct = 0.0
    """Packets lost in the good state, in percent."""

    def model_in_si(self) -> loss.Loss:
        """Return the model in fractions."""
        return loss.GilbertElliott(
            enter=self.enter_pct / 100,
            leave=self.leave_pct / 100,
            bad_loss=self.bad_loss_pct / 100,
            good_loss=self.good_loss_pct / 100,
        )


class RecordedLoss(Block):
    """Loss as it was recorded, packet by packet, and from the beginning again at the recording's end."""

    model: Literal["recorded"]
    """Name of the loss model: recorded."""
    file: Annotated[Text | None, OMITTABLE] = None
    """Text file of the recording, relative to the scenario; read where no pattern is given."""
    pattern: Annotated[
        Annotated[
            str,
            Field(pattern=rf"^[01]{{1,{loss.PATTERN_LENGTH}}}$"),
            Rule(f"1 to {loss.PATTERN_LENGTH} characters 0 and 1", "write 1 for a lost packet, in quotes", "text"),
        ]
        | None,
        OMITTABLE,
    ] = None
    """The recording itself: a character a packet, 1 where it was lost and 0 where not."""

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Refuse a recording that is nowhere."""
        yield from super().rules_between(data)
        if "file" not in data and "pattern" not in data:
            todo = "add file (Text file of the recording, relative to the scenario)"
            yield fault_at(("file",), None, violation("given", todo, absent=True))

    def model_in_si(self) -> loss.Loss:
        """Return the recording. Raises ValueError if its file has not been read."""
        if self.pattern is None:
            raise ValueError(f"the recording {self.file} has not been read")
        return loss.Recorded(self.pattern)


MODELS: Mapping[str, type[BernoulliLoss | GilbertElliottLoss | RecordedLoss]] = {
    "bernoulli": BernoulliLoss,
    "gilbert_elliott": GilbertElliottLoss,
    "recorded": RecordedLoss,
}


def _choose(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Let the model's own block judge its keys: complaints about the keys of other models would mislead."""
    if not isinstance(value, dict):
        raise violation("a mapping of model and the model's own keys", "", kind="mapping")
    names = ", ".join(MODELS)
    if "model" not in value:
        rule = violation("given", f"add model (Name of the loss model: {names})", absent=True)
        raise faults_error([fault_at(("model",), None, rule)])
    block = MODELS.get(value["model"]) if isinstance(value["model"], str) else None
    if block is None:
        rule = violation(f"one of {names}", "name a loss model; or write loss_pct alone")
        raise faults_error([fault_at(("model",), value["model"], rule)])
    return block.model_validate(value, context=info.context)


LossModel = Annotated[BernoulliLoss | GilbertElliottLoss | RecordedLoss, WrapValidator(_choose)]
