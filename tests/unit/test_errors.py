"""The exception tree: drawn once, and the drawing is true."""

import re

import pytest

from acorn_svc import errors


def _tree(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(_tree(child) for child in root.__subclasses__()))


def test_the_drawing_names_every_error_with_its_code() -> None:
    drawn = dict(re.findall(r"^ {4}[ │├└─]*([A-Z]\w+) +([a-z_]+)", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {error.__name__: error.code for error in _tree(errors.AcornError)}


def test_codes_are_unique() -> None:
    codes = [error.code for error in _tree(errors.AcornError)]
    assert len(codes) == len(set(codes))


def test_a_limit_tells_its_name_and_value() -> None:
    error = errors.TooManyBytes("Too many bytes.", limit="max_upload_bytes", value=5)
    assert (str(error), error.limit, error.value) == ("Too many bytes.", "max_upload_bytes", 5)
    assert isinstance(error, errors.LimitExceeded)


def test_unavailable_says_when_to_come_back() -> None:
    assert errors.Unavailable("Busy.", retry_after=7).retry_after == 7


@pytest.mark.parametrize("error", sorted(_tree(errors.AcornError), key=lambda e: e.__name__))
def test_every_error_takes_one_sentence(error: type[errors.AcornError]) -> None:
    assert error("A sentence.").message == "A sentence."
