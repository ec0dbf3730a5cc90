"""The parts that schemas of input files are made of: blocks of keys, and rules for single values.

A `Block` is a frozen, strict pydantic model of one YAML mapping. It differs from a plain model in three ways: every
error is translated into a fault in the file's words (see `testbed.faults`), rules *between* its keys are checked even
when single keys are wrong too, so that all faults come out at once, and what a file left out is left out again
when the block is written back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from testbed.faults import FAULT_TYPE, Location, fault_at, suggestion, violation

__all__ = ["OMITTABLE", "Block", "Rule", "faults_error"]

_SYNONYMS: Mapping[str, str] = {
    "bandwidth": "rate_mbps",
    "bandwidth_mbps": "rate_mbps",
    "latency": "delay_ms",
    "latency_ms": "delay_ms",
    "nodes": "devices",
    "hosts": "devices",
    "network": "links",
    "memory": "memory_mb",
    "cmd": "command",
    "args": "command",
}
"""Other tools' words for our keys, offered where a block has the key."""


@dataclass(frozen=True)
class Rule:
    """State in words what a single value must be; the words replace every error of the type it annotates.

    Put it last in `Annotated[...]`. Not for lists and mappings: it would hide which item is wrong.
    """

    must_be: str
    todo: str
    kind: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        error = violation(self.must_be, self.todo, kind=self.kind)
        return core_schema.custom_error_schema(
            handler(source),
            FAULT_TYPE,
            custom_error_message=error.message_template,
            custom_error_context=error.context,
        )


class _Omittable:
    """Let a field be left out (None in code) while an explicit null, YAML's empty value, stays a fault."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        (inner,) = (choice for choice in get_args(source) if choice is not type(None))
        schema = handler.generate_schema(inner)
        writing = core_schema.wrap_serializer_function_ser_schema(
            lambda value, write: None if value is None else write(value), schema=schema
        )
        return core_schema.no_info_after_validator_function(lambda value: value, schema, serialization=writing)


OMITTABLE = _Omittable()


class Block(BaseModel):
    """One mapping of an input file: unknown keys, wrong types and non-finite numbers are faults."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Yield what is wrong between the keys of `data`, which is as the file has it and may hold anything."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _collect_all_faults(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        faults = list(cls.rules_between(data)) if isinstance(data, dict) else []
        try:
            block = handler(data)
        except ValidationError as error:
            single = [_translate(cls, each) for each in error.errors() if not _is_echo(each)]
            raise faults_error([*single, *faults]) from None
        if faults:
            raise faults_error(faults)
        return block

    @model_serializer(mode="wrap")
    def _leave_out_what_was_left_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = {
            spelling
            for name, field in type(self).model_fields.items()
            if name not in self.model_fields_set and getattr(self, name) is None
            for spelling in (name, field.alias)
        }
        return {key: value for key, value in handler(self).items() if key not in absent | self.overruled()}

    def overruled(self) -> set[str]:
        """Return the keys whose defaults do not count because of another key; they are not written either."""
        return set()


def faults_error(faults: list[InitErrorDetails]) -> ValidationError:
    """Make the error that carries several faults; pydantic prefixes their locations as it passes up."""
    return ValidationError.from_exception_data("faults", faults)


def _is_echo(error: ErrorDetails) -> bool:
    """Tell whether a list counts as too short only because pydantic left out items that are faults themselves."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _translate(block: type[Block], error: ErrorDetails) -> InitErrorDetails:
    """Turn one pydantic error within `block` into a fault; what an inner block translated stays as it is."""
    location, value, context = error["loc"], error["input"], error.get("ctx", {})
    match error["type"]:
        case "must":
            fault = PydanticCustomError(FAULT_TYPE, "must be {rule}", context)
        case "extra_forbidden":
            fault = violation("a known key", suggestion(location[-1], _known_keys(block)))
            value = location[-1]
        case "invalid_key":
            fault = violation("a known key", suggestion(value, _known_keys(block)))
        case "missing":
            fault = violation("given", _how_to_add(block, location), absent=True)
        case "model_type":
            keys = dict.fromkeys(_known_keys(block).values())
            fault = violation(f"a mapping of {', '.join(keys)}", "", kind="mapping")
        case "dict_type":
            fault = violation("a mapping", "", kind="mapping")
        case "tuple_type":
            fault = violation("a list", "", kind="list")
        case "too_short":
            fault = violation(f"a list of at least {context['min_length']}", "add what is missing")
        case "too_long":
            fault = violation(f"a list of at most {context['max_length']}", "remove what is too many")
        case "string_type":
            fault = violation("text", "write text", kind="text")
        case _:
            fault = violation(f"valid ({error['msg']})", "correct it")
    return fault_at(location, value, fault)


def _known_keys(block: type[Block]) -> dict[str, str]:
    """Map every spelling that hints at a key of `block` to that key."""
    keys = [field.alias or name for name, field in block.model_fields.items()]
    return {key: key for key in keys} | {word: key for word, key in _SYNONYMS.items() if key in keys}


def _how_to_add(block: type[Block], location: Location) -> str:
    """Say what a missing key is for, from its docstring."""
    for name, field in block.model_fields.items():
        if location == (field.alias or name,):
            return f"add {field.alias or name} ({(field.description or '').rstrip('.')})"
    return "add it"
