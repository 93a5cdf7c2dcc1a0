"""Text and plain values as declared types: the conversion that the command line, files and task options share."""

import enum
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pytest

from prm_jax.errors import UserError
from prm_jax.option_values import call_with_options, convert, convert_options, describe, parameter_kinds, read_value

Where = Literal["whole", "marker"] | Callable[[str], str | None]


class Colour(enum.Enum):
    RED = "warm"
    BLUE = "cold"


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        ("3", int, 3),
        ("1_000", int, 1000),
        (3.0, int, 3),
        ("1e-3", float, 0.001),
        ("-.inf", float, -float("inf")),
        (2, float, 2.0),
        ("on", bool, True),
        ("true", str, "true"),
        ("1e3", str, "1e3"),
        (5, str, "5"),
        ("007", Any, "007"),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("\n\n, b", tuple[str, ...], ("\n\n", "b")),
        ('["a,b", "c"]', tuple[str, ...], ("a,b", "c")),
        ("[x", tuple[str, ...], ("[x",)),
        ("1,2", tuple[int, ...], (1, 2)),
        ("1,x", tuple[int, str], (1, "x")),
        ([1, "2"], tuple[int, ...], (1, 2)),
        ("", list[str], []),
        ("a,b", Sequence[str], ("a", "b")),
        ("x,y,z", tuple[str], ("x", "y", "z")),
        ("warm", Colour, Colour.RED),
        ("RED", Colour, Colour.RED),
        ("warm", list[Colour], [Colour.RED]),
        ("none", int | None, None),
        (None, int | None, None),
        ("7", int | None, 7),
        ("x", str | None, "x"),
        ("2", Literal[1, 2], 2),
        ("marker", Where, "marker"),
        ("string:capwords", Where, __import__("string").capwords),
        (len, Where, len),
        ("0.5", Annotated[float, "note"], 0.5),
        ("a/b", pathlib.Path, pathlib.Path("a/b")),
        ({"a": 1}, dict[str, int], {"a": 1}),
    ],
)
def test_values_are_converted(value, kind, result):
    converted = convert(value, kind)
    assert converted == result and type(converted) is type(result)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("x", int | None, "expected a whole number or none"),
        ("1.5", int, "expected a whole number"),
        (True, float, "expected a number"),
        (True, int, "expected a whole number"),
        (1, bool, "expected true or false"),
        ("maybe", bool, "expected true or false"),
        ([1], int, "expected a whole number"),
        (None, str, "expected a text"),
        (5, tuple[str, ...], "expected a list, each a text"),
        ("1,2,3", tuple[int, int], "expected 2 values"),
        ("adam", Literal["adamw", "sgd"], "one of adamw, sgd; did you mean adamw?"),
        ("middle", Where, "expected one of whole, marker or package.module:function"),
        (3, Callable[[str], str], "expected package.module:function"),
        ("war", Colour, "expected one of warm, cold; did you mean warm?"),
        ("9" * 5000, int, "expected a whole number"),
    ],
)
def test_values_of_other_types_are_refused(value, kind, message):
    with pytest.raises(ValueError) as caught:
        convert(value, kind)
    assert message in str(caught.value)
    with pytest.raises(UserError, match="the option 'o' of it: "):
        convert_options({"o": value}, {"o": kind}, "it")


def test_a_function_that_cannot_be_imported_is_refused():
    with pytest.raises(UserError, match="the option 'o' of it: .*no module 'absent_module'"):
        convert_options({"o": "absent_module:f"}, {"o": Where}, "it")


def _maker(path: str, size: int = 1, *, share: "float" = 0.5, verbose=False, names=(), rest=None):
    return path, size, share, verbose, names, rest


def test_a_maker_gets_what_its_signature_declares():
    assert parameter_kinds(_maker)["verbose"] is bool
    given = {"path": "1", "size": "3", "share": "1", "verbose": "true", "names": "a,b", "rest": "7"}
    assert call_with_options(_maker, given, "it") == ("1", 3, 1.0, True, ("a", "b"), "7")
    assert call_with_options(lambda **options: options, {"a": "1"}, "it") == {"a": "1"}
    for given, message in [
        ({}, "it needs the option 'path'"),
        ({"path": "x", "siz": "3"}, "it has no option 'siz'; did you mean 'size'?"),
        ({"path": "x", "verbose": "5"}, "the option 'verbose' of it: expected true or false, found '5'"),
    ]:
        with pytest.raises(UserError) as caught:
            call_with_options(_maker, given, "it")
        assert message in str(caught.value)


def test_annotations_for_type_checkers_only_do_not_matter():
    namespace: dict[str, Any] = {}
    exec("def make(a: 'Absent', b: 'int' = 2): return a, b", namespace)
    assert call_with_options(namespace["make"], {"a": "x", "b": "3"}, "it") == ("x", 3)


def test_quoted_words_and_descriptions():
    assert read_value("null", str | None, quoted=True) == "null" and read_value("null", str | None) is None
    assert describe(dict[str, int]) == "a mapping" and describe(type(None)) == "none"
