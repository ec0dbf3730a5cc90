"""The `links` block of a scenario, in the units of the file (Mbit/s, ms, %).

    links.default, then every entry of links.overrides that covers the link, in order  -->  LinkSettings

Kilo and mega are powers of ten. Conversion to SI units is in `testbed.links`, not here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails

from testbed.block import OMITTABLE, Block, faults_error
from testbed.faults import fault_at, violation
from testbed.fields import DelayMs, DeviceName, DeviceNameOrStar, LossPct, QueueMs, RateMbps, ReorderPct, known_names
from testbed.loss import Bernoulli, Loss
from testbed.loss_schema import BernoulliLoss, LossModel

__all__ = ["FRAME_BITS", "LinkChanges", "LinkDefault", "LinkOverride", "LinkSelector", "LinkSettings", "Links"]

IMPAIRMENTS = ("rate_mbps", "delay_ms", "jitter_ms", "loss_pct", "queue_ms", "reorder_pct")
FRAME_BITS = 1514 * 8
"""Largest Ethernet frame as the kernel counts it: 1500 bytes and a header of 14."""


class _Impaired(Block):
    """Rule shared by all blocks that hold link settings."""

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Refuse two statements of the loss."""
        yield from super().rules_between(data)
        if "loss" in data and "loss_pct" in data:
            rule = violation("absent where loss_pct is given", "keep one of the two")
            yield fault_at(("loss",), data["loss"], rule)

    @model_validator(mode="after")
    def _take_loss_for_loss_pct(self) -> Self:
        """Resolve a Bernoulli model, which is another spelling of loss_pct."""
        loss: LossModel | None = getattr(self, "loss", None)
        if not isinstance(loss, BernoulliLoss):
            return self
        stated = {name: getattr(self, name) for name in self.model_fields_set if name != "loss"}
        stated["loss_pct"] = loss.loss_pct
        return self.model_construct(_fields_set=set(stated), **stated)

    def overruled(self) -> set[str]:
        """Leave loss_pct out where a loss model is given."""
        return set() if getattr(self, "loss", None) is None else {"loss_pct"}

    def given(self) -> dict[str, Any]:
        """Return the settings that this block states, by name."""
        return {name: getattr(self, name) for name in (*IMPAIRMENTS, "loss") if name in self.model_fields_set}

    def over(self, settings: "LinkSettings") -> "LinkSettings":
        """Return `settings` with what this block states put over them; the loss is stated in one way or the other."""
        stated = self.given()
        if "loss" in stated:
            stated["loss_pct"] = 100 * stated["loss"].model_in_si().mean
        elif "loss_pct" in stated:
            stated["loss"] = None
        return replace(settings, **stated)


class LinkDefault(_Impaired):
    """Settings of every link that no override covers."""

    rate_mbps: RateMbps | None = None
    """Rate in Mbit/s (10^6 bit/s), counted with 14 Ethernet header bytes a frame; null leaves it alone."""
    delay_ms: DelayMs = 0.0
    """One-way delay in milliseconds; above 0 it needs the kernel module sch_netem, or xt_NFQUEUE and iptables."""
    jitter_ms: DelayMs = 0.0
    """Variation of the delay in milliseconds, at most delay_ms."""
    loss_pct: LossPct = 0.0
    """Packets lost, in percent: 0, or 0.01 to 100; which ones follows from the seed."""
    queue_ms: QueueMs = 200.0
    """Depth of the queue in milliseconds of sending at rate_mbps; what does not fit is dropped."""
    reorder_pct: ReorderPct = 0.0
    """Packets that are not delayed, and so overtake those that are, in percent; needs a delay_ms."""
    loss: Annotated[LossModel | None, OMITTABLE] = None
    """Loss by a named model, instead of loss_pct."""


class LinkChanges(_Impaired):
    """Settings to change; what is left out stays as it is."""

    rate_mbps: RateMbps | None = None
    """Rate in Mbit/s; null leaves the rate alone."""
    delay_ms: Annotated[DelayMs | None, OMITTABLE] = None
    """One-way delay in milliseconds."""
    jitter_ms: Annotated[DelayMs | None, OMITTABLE] = None
    """Variation of the delay in milliseconds."""
    loss_pct: Annotated[LossPct | None, OMITTABLE] = None
    """Packets lost, in percent."""
    queue_ms: Annotated[QueueMs | None, OMITTABLE] = None
    """Depth of the queue in milliseconds of sending at rate_mbps."""
    reorder_pct: Annotated[ReorderPct | None, OMITTABLE] = None
    """Packets that are not delayed, and so overtake those that are, in percent."""
    loss: Annotated[LossModel | None, OMITTABLE] = None
    """Loss by a named model, instead of loss_pct."""


class LinkSelector(Block):
    """Which links are meant: one direction by `from` and `to`, or both directions by `between`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["from", "to"]}, {"required": ["between"]}]})

    from_: Annotated[DeviceNameOrStar | None, OMITTABLE] = Field(default=None, alias="from")
    """Sending device, or "*" for all."""
    to: Annotated[DeviceNameOrStar | None, OMITTABLE] = None
    """Receiving device, or "*" for all."""
    between: Annotated[tuple[DeviceName, ...] | None, OMITTABLE, Field(strict=False, min_length=2, max_length=2)] = None
    """Two devices: both directions of their link."""

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Refuse a selector that is missing, incomplete, doubled, or leads from a device to itself."""
        yield from super().rules_between(data)
        ends, pair = [data[key] for key in ("from", "to") if key in data], data.get("between")
        if "between" in data and ends:
            yield fault_at(("between",), pair, violation("absent where from or to is given", "keep one way"))
        elif "between" in data:
            if isinstance(pair, list) and len(pair) == 2 and pair[0] == pair[1]:
                yield fault_at(("between", 1), pair[1], violation("another device", "a link joins two devices"))
        elif len(ends) == 1:
            key, other = ("to", "from") if "from" in data else ("from", "to")
            rule = violation(f"given where {other} is", f'add {key}: a device, or "*" for all', absent=True)
            yield fault_at((key,), None, rule)
        elif not ends:
            rule = violation("named by from and to, or by between", "add from: d0 and to: d1", absent=True)
            yield fault_at((), None, rule)
        elif ends[0] == ends[1] != "*":
            yield fault_at(("to",), ends[1], violation("another device than from", "a link joins two devices"))

    def covers(self, source: str, destination: str) -> bool:
        """Tell whether the link from `source` to `destination` is meant."""
        if self.between is not None:
            return source in self.between and destination in self.between
        return self.from_ in (source, "*") and self.to in (destination, "*")


class LinkOverride(LinkSelector, LinkChanges):
    """Settings of some links that differ from the default; of several overrides the last one counts."""

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Refuse an override that changes nothing."""
        yield from super().rules_between(data)
        if not any(key in data for key in (*IMPAIRMENTS, "loss")):
            rule = violation(f"a change of {', '.join(IMPAIRMENTS)} or loss", "add one, or remove the entry")
            yield fault_at((), dict(data), rule)


@dataclass(frozen=True)
class LinkSettings:
    """What holds on one directed link once default and overrides are put together; units as in the file."""

    rate_mbps: float | None
    delay_ms: float
    jitter_ms: float
    loss_pct: float
    """In the long run, whatever the model."""
    queue_ms: float
    loss: LossModel | None = None
    """The loss model; None where every packet has the same chance, `loss_pct`."""
    reorder_pct: float = 0.0

    def loss_model(self) -> Loss:
        """Return the loss model in fractions."""
        return Bernoulli(self.loss_pct / 100) if self.loss is None else self.loss.model_in_si()

    def columns(self) -> dict[str, str | float | None]:
        """Return the settings as columns of a table."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "loss": "bernoulli" if self.loss is None else self.loss.model}


class Links(Block):
    """All links: every device can reach every other."""

    default: LinkDefault = LinkDefault()
    """Settings of every link that no override covers."""
    overrides: Annotated[tuple[LinkOverride, ...], Field(strict=False)] = ()
    """Exceptions from the default, applied in order; the last one that covers a link counts."""
    uplink_mbps: RateMbps | None = None
    """Cap in Mbit/s over all that one device sends; null sets none."""

    def settings(self, source: str, destination: str) -> LinkSettings:
        """Return the settings of the link from `source` to `destination`."""
        settings = self.default.over(LinkSettings(**{name: getattr(self.default, name) for name in IMPAIRMENTS}))
        for override in self.overrides:
            if override.covers(source, destination):
                settings = override.over(settings)
        return settings

    @model_validator(mode="after")
    def _check_every_link(self, info: ValidationInfo) -> Self:
        names = known_names(info)
        pairs = [(source, to) for source in names for to in names if source != to]
        faults = [*self._overrides_without_effect(pairs)]
        reported: set[tuple[str | int, ...]] = set()
        for source, destination in pairs:
            for fault in self._impossible_settings(source, destination):
                if fault["loc"] not in reported:
                    reported.add(fault["loc"])
                    faults.append(fault)
        if faults:
            raise faults_error(faults)
        return self

    def _overrides_without_effect(self, pairs: Sequence[tuple[str, str]]) -> Iterator[InitErrorDetails]:
        """Yield every overridden value that later overrides contradict on all links it was meant for."""
        settled = {pair: self.settings(*pair) for pair in pairs}
        for position, override in enumerate(self.overrides):
            covered = [pair for pair in pairs if override.covers(*pair)]
            for name, value in override.given().items():
                if covered and not any(_holds(settled[pair], name, value) for pair in covered):
                    todo = "later overrides contradict it: remove one, or put the more general one first"
                    rule = violation("in effect on some link", todo)
                    yield fault_at(("overrides", position, name), _as_written(value), rule)

    def _impossible_settings(self, source: str, destination: str) -> Iterator[InitErrorDetails]:
        """Yield what is wrong between settings of one link, whichever blocks they come from."""
        link = self.settings(source, destination)
        if link.jitter_ms > link.delay_ms:
            rule = f"at most the delay_ms of the link {source} to {destination}, which is {link.delay_ms:g}"
            error = violation(rule, "lower jitter_ms or raise delay_ms")
            yield fault_at(self._statement_of("jitter_ms", source, destination), _as_written(link.jitter_ms), error)
        if link.reorder_pct and not link.delay_ms:
            rule = f"0 where the link {source} to {destination} has no delay_ms"
            error = violation(rule, "packets overtake only those that are delayed: give it a delay_ms")
            place = self._statement_of("reorder_pct", source, destination)
            yield fault_at(place, _as_written(link.reorder_pct), error)
        frame_ms = FRAME_BITS / (link.rate_mbps * 1000) if link.rate_mbps else 0.0
        if link.queue_ms < frame_ms:
            rule = f"at least {frame_ms:.2f} for the link {source} to {destination}, to hold one frame at its rate"
            error = violation(rule, "raise queue_ms")
            yield fault_at(self._statement_of("queue_ms", source, destination), _as_written(link.queue_ms), error)

    def _statement_of(self, name: str, source: str, destination: str) -> tuple[str | int, ...]:
        """Return the place that states the setting `name` of a link."""
        for position, override in reversed(list(enumerate(self.overrides))):
            if name in override.given() and override.covers(source, destination):
                return ("overrides", position, name)
        return ("default", name)


def _holds(settings: LinkSettings, name: str, value: object) -> bool:
    """Tell whether a link has a setting; a loss model's mean is not a loss_pct that was stated."""
    return getattr(settings, name) == value and (name != "loss_pct" or settings.loss is None)


def _as_written(value: Any) -> Any:
    """Return a value as a user would write it: 5, not 5.0."""
    if isinstance(value, Block):
        return value.model_dump()
    return int(value) if isinstance(value, float) and value.is_integer() else value
