"""The required content of public docstrings: arguments, shapes, results, gradients, source."""

import inspect
import re

import pytest

from prm_jax import models, pallas, rl, stats

# Without a paper: arithmetic, conventions of the code base, input and output.
NO_SOURCE = {
    "aggregate_quantiles", "aggregate_tokens", "apply_isotonic", "apply_platt", "brier_score",
    "calibration_error", "continuation_discounts", "discounted_returns", "double_q_target",
    "e_benjamini_hochberg", "entropy_bonus", "midranks", "outcome_token_rewards", "pearson", "r_squared",
    "reliability_bins", "roc_auc", "rows_of_groups", "spearman", "step_rewards", "token_rewards_from_steps",
    "truncation_mask", "twin", "whiten", "whole_token_rewards",
}  # fmt: skip
SHAPE = re.compile(r"\[[^\]]*\]|(any|same|static|of the) shape|[Ss]calar|\bshape\b|PRNG key|see `|see there|as in `")
DTYPE = re.compile(r"float32|\bf32\b|\bbool\b|int32|\bi32\b|`?Loss`?|`?Mean`?|dict|float|int\b|`[A-Z]\w+`")


def public(module):
    names = [name for name in module.__all__ if inspect.isfunction(inspect.unwrap(getattr(module, name)))]
    return [pytest.param(inspect.unwrap(getattr(module, name)), id=name) for name in names]


def sections(doc: str) -> dict[str, str]:
    """Section -> its text; the part before the first section under ""."""
    parts = re.split(r"^(Args|Returns|Raises|Yields|Attributes|Source):", inspect.cleandoc(doc), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def arguments(text: str) -> dict[str, str]:
    """Argument -> what is said of it; "a, b: both" counts for both."""
    found = re.split(r"^ {2}(\w+(?:, \w+)*):", text, flags=re.MULTILINE)
    pairs = zip(found[1::2], found[2::2], strict=True)
    return {name: said for names, said in pairs for name in names.split(", ")}


def is_array(annotation: str) -> bool:
    return bool(re.search(r"ArrayLike|\bArray\b", annotation))


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("args", "kwargs")]


RL, OTHERS = [*public(rl), *public(stats)], [*public(models), *public(pallas)]
ALL = [*RL, *OTHERS]


@pytest.mark.parametrize("function", RL)
def test_every_argument_is_described_in_the_order_of_the_signature(function):
    """Elementwise functions of one argument may name it in the summary."""
    said, expected = sections(function.__doc__), parameters(function)
    if "Args" in said or len(expected) > 1:
        assert list(arguments(said.get("Args", ""))) == expected


@pytest.mark.parametrize("function", OTHERS)
def test_arguments_of_models_and_kernels_are_described_too(function):
    """All of them, or none where the function is another one that its docstring names, or takes three at most."""
    said, expected = sections(function.__doc__), parameters(function)
    if "Args" in said:
        assert sorted(arguments(said["Args"])) == sorted(expected)
    else:
        assert "``" in function.__doc__ or len(expected) <= 3


@pytest.mark.parametrize("function", ALL)
def test_arrays_have_shapes_and_results_types(function):
    said = sections(function.__doc__)
    described = arguments(said.get("Args", ""))
    for name, parameter in inspect.signature(function).parameters.items():
        if is_array(str(parameter.annotation)) and name in described:
            assert SHAPE.search(described[name]), f"{name}: no shape in {described[name]!r}"
    returned = str(inspect.signature(function).return_annotation)
    if is_array(returned) or "Loss" in returned:
        text = said.get("Returns", said[""])
        assert SHAPE.search(text) or "Loss" in text or "`" in text, "no shape of the result"


@pytest.mark.parametrize("function", RL)
def test_results_have_dtypes_and_docstrings_cover_empty_masks_and_gradients(function):
    doc, module = inspect.cleandoc(function.__doc__), inspect.getmodule(function).__doc__
    assert DTYPE.search(sections(doc).get("Returns", doc)), "no dtype of the result"
    names = inspect.signature(function).parameters
    if {"mask", "valid", "present", "cal_mask"} & set(names):
        assert re.search(r"empty|outside|without|0 for|weight|invalid|number of|no data|-1|1/2 where|missing", doc)
    floats = [p for p in names.values() if is_array(str(p.annotation))]
    if floats and "-> bool" not in str(inspect.signature(function)):
        assert re.search(r"radient", doc + module), "which inputs receive gradients?"


@pytest.mark.parametrize("function", RL)
def test_formulas_have_a_source(function):
    doc, module = inspect.cleandoc(function.__doc__), inspect.getmodule(function).__doc__
    cited = re.search(r"Source:|arXiv", doc) or re.search(r"arXiv", module)
    assert cited or function.__name__ in NO_SOURCE


@pytest.mark.parametrize("module", [rl, stats, models, pallas], ids=lambda m: m.__name__)
def test_public_names_are_unique_and_documented(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert (thing.__doc__ or "").strip(), name
