"""The base of every part of a job file: strict, frozen, and reporting all mistakes at once.

Owns `StrictModel` and the way a mistake carries its hint. Does not own any field, nor the wording of what
pydantic finds by itself (`wording`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

#: Where in the job a thing is: `("data", "files", 0)`.
FieldPath = tuple[str | int, ...]

#: The pydantic error type of mistakes worded by ourselves.
REFUSED = "refused"


def refused(message: str, hint: str | None = None, lacks: tuple[FieldPath, ...] = ()) -> PydanticCustomError:
    """An error for validators to raise, whose words reach the user unchanged; `lacks` as in `Complaint`."""
    # The words travel as arguments: pydantic would read braces in the template itself as placeholders.
    return PydanticCustomError(REFUSED, "{message}", {"message": message, "hint": hint, "lacks": lacks})


@dataclass(frozen=True)
class Complaint:
    """A broken rule between fields.

    Attributes:
        at: the field it is about, relative to the model; empty for the model itself.
        message: what is wrong.
        hint: what to write instead.
        lacks: the fields whose absence this is about, relative to `at`. Where one of them is merely
            misspelled, the misspelling is the mistake and this is not shown.
    """

    at: FieldPath
    message: str
    hint: str | None = None
    lacks: tuple[FieldPath, ...] = ()


class StrictModel(BaseModel):
    """A section of a job file: no unknown fields, no changes, and NaN and infinity are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    #: The field that a value without field names is short for, `after: first`; None where there is no such form.
    shorthand: ClassVar[str | None] = None

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Rules between fields, on the input as given, without its nulls; values are not validated yet.

        Pydantic's own model validators run only when every field is right, which would make the user mend the
        file twice. These run always.
        """
        yield from ()

    @classmethod
    def section_at(cls, path: FieldPath) -> type[StrictModel] | None:
        """The model of the section at a path below this one, None when there is no section there."""
        model: type[StrictModel] = cls
        for part in path:
            field = model.model_fields.get(str(part))
            candidates = (get_args(field.annotation) or (field.annotation,)) if field else ()
            sections = [one for one in candidates if isinstance(one, type) and issubclass(one, StrictModel)]
            if not sections:
                return None
            model = sections[0]
        return model

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema, with the short form where there is one."""
        reference = handler(core_schema)
        if cls.shorthand is not None:
            schema = handler.resolve_ref_schema(reference)
            whole = {name: schema.pop(name) for name in tuple(schema) if name not in ("title", "description")}
            field = whole["properties"][cls.shorthand]
            short = {name: value for name, value in field.items() if name in ("anyOf", "type", "items")}
            schema["anyOf"] = [whole, short]
        return reference

    @model_validator(mode="wrap")
    @classmethod
    def _fields_then_rules(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        errors: list[InitErrorDetails] = []
        model: Self | None = None
        implied = cls.shorthand if _is_short(data) else None
        if implied is not None:
            data = {implied: data}
        try:
            model = handler(data)
        except ValidationError as error:
            errors += [_again(details, implied) for details in error.errors(include_url=False)]
        if isinstance(data, dict):
            written = cast("dict[str, object]", data)
            given = {name: value for name, value in written.items() if value is not None}
            errors += [
                InitErrorDetails(
                    type=refused(broken.message, broken.hint, broken.lacks), loc=broken.at, input=data
                )
                for broken in cls.rules(given)
            ]
        if model is None or errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return model


def _is_short(data: object) -> bool:
    """Whether a section is given as a value of its `shorthand`."""
    return isinstance(data, str | int | float | list | tuple)


def _again(details: Any, implied: str | None) -> InitErrorDetails:
    """The argument that makes the same error once more: pydantic has no way to extend one.

    Its place is one that was written: without the name of the field that a shorthand has implied.
    """
    context, place = details.get("ctx", {}), details["loc"]
    if implied is not None and place[:1] == (implied,):
        place = place[1:]
    if details["type"] == REFUSED:
        again = refused(context["message"], context["hint"], context["lacks"])
        return InitErrorDetails(type=again, loc=place, input=details["input"])
    return InitErrorDetails(type=details["type"], loc=place, input=details["input"], ctx=context)
