"""What the child of a fit says, which is suspected as the file is: it may have taken the child over."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from acorn_svc.errors import FitFailed

EXACT = ConfigDict(strict=True, allow_inf_nan=False)
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Words = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]  # PostgreSQL takes no NUL
Name = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True, config=EXACT)
class Course:
    """How far a fit has come, or had; see `training.loop.Progress`."""

    stage: Words
    step: Count
    steps: Count
    seconds: float | None
    psnr: float | None
    iou: float | None
    blocks: Count
    parameters: Count
    bytes: Count

    def to_json(self) -> dict[str, Any]:
        """The plain values."""
        return asdict(self)


@dataclass(frozen=True, config=EXACT)
class Reached(Course):
    """How far the fit has come that says it."""

    seconds: float


@dataclass(frozen=True, config=EXACT)
class Started:
    """The fit goes on after `step`."""

    say: Literal["started"]
    step: Count


@dataclass(frozen=True, config=EXACT)
class GoesOn:
    """The fit has come so far."""

    say: Literal["progress"]
    progress: Reached


@dataclass(frozen=True, config=EXACT)
class Made:
    """There is a file to look at, and perhaps one to go on from; the last one is said to be done."""

    say: Literal["snapshot", "done"]
    file: Name
    progress: Reached
    checkpoint: Name | None = None


@dataclass(frozen=True, config=EXACT)
class Reason:
    """An error, as `AcornError.to_json` has it."""

    code: Words
    message: Words
    limit: Words | None = None
    value: Count | float | None = None


@dataclass(frozen=True, config=EXACT)
class Failed:
    """The fit cannot go on."""

    say: Literal["failed"]
    error: Reason


Said = Started | GoesOn | Made | Failed
_SAID: TypeAdapter[Said] = TypeAdapter(Annotated[Said, Field(discriminator="say")])


def understand(line: bytes) -> Said:
    """What a line says; raises FitFailed when no fit says such a thing."""
    try:
        return _SAID.validate_json(line)
    except ValidationError as error:
        raise FitFailed("The process of the fit said what makes no sense.") from error
