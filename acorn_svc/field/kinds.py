"""The kinds of fields."""

from __future__ import annotations

from acorn_svc.errors import BadModel, BadRequest
from acorn_svc.field.model import Field
from acorn_svc.field.shape import ShapeField
from acorn_svc.field.state import FieldState

AnyField = Field | ShapeField
KINDS: dict[str, type[Field] | type[ShapeField]] = {"image": Field, "shape": ShapeField}


def field_from_state(state: FieldState) -> AnyField:
    """Rebuilds a field of whichever kind its header says.

    Raises:
        BadModel: the kind is unknown, or the arrays do not fit together.
    """
    kind = KINDS.get(state.header.get("kind", ""))
    if kind is None:
        raise BadModel("the model is of a kind that this program doesn't know")
    return kind.from_state(state)


def as_image(field: AnyField) -> Field:
    """The field, if it is one of a picture.

    Raises:
        BadRequest: it is one of a shape.
    """
    if not isinstance(field, Field):
        raise BadRequest("this is a shape, which has no pixels: ask for its mesh")
    return field


def as_shape(field: AnyField) -> ShapeField:
    """The field, if it is one of a shape.

    Raises:
        BadRequest: it is one of a picture.
    """
    if not isinstance(field, ShapeField):
        raise BadRequest("this is a picture, which has no surface: render it")
    return field
