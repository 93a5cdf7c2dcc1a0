"""Numbers and words as answers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_jax.verifiers import ExactVerifier, NumberVerifier, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("-5", -5), ("\u22125", -5), ("+5", 5), ("5.", 5), ("5.0", 5), (".5", Fraction(1, 2)),
        ("0005", 5), ("1,234", 1234), ("1,234,567.50", Fraction(2469135, 2)), ("$5", 5), ("-$5", -5), ("$-5", -5),
        (r"\$1,000", 1000), ("$5$", 5), (r"\(5\)", 5), ("**5**", 5), ("50%", 50), (r"50\%", 50),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)), ("1 3/4", Fraction(7, 4)), (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\frac34", Fraction(3, 4)), (r"-\dfrac{3}{4}", Fraction(-3, 4)), (r"2\tfrac{1}{2}", Fraction(5, 2)),
        ("1e3", 1000), ("1e-3", Fraction(1, 1000)), ("1.5/2.5", Fraction(3, 5)), (r"10,\!080", 10080),
        ("9" * 300, int("9" * 300)),
    ],
)  # fmt: skip
def test_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "-", "$", "$$", "twelve", "5 dollars", "5 6", "--5", "5..", "5.5.5", "1,23", "12,34,567", "1_000", "0x10",
     "inf", "nan", "1/2/3", "3/0", "0/0", r"\frac{1}{0}", "1e301", "1e99999", "9" * 301, "\uff15", "\u0665", "5=5",
     "3 or 5", "3, 5", "()", "__import__('os')"],
)  # fmt: skip
def test_not_numbers(text):
    assert parse_number(text) is None


def test_percent_policies():
    assert parse_number("50%", percent="ratio") == Fraction(1, 2)
    assert parse_number("50%", percent="reject") is None
    assert NumberVerifier(percent="ratio").verify("#### 50%", "0.5").status == "pass"
    assert NumberVerifier().verify("#### 50%", "0.5").status == "fail"


@given(st.text() | st.text(alphabet="0123456789.,-+/eE%$\\{}frac ", max_size=30))
def test_any_text_is_taken(text):
    value = parse_number(text)
    assert value is None or isinstance(value, Fraction)


@given(st.fractions(), st.sampled_from(["{}", "${}$", "{}.", " {} ", r"\({}\)"]))
def test_written_fractions_are_read_back(value, form):
    assert parse_number(form.format(value)) == value


@given(st.integers())
def test_thousands_are_read_back(value):
    assert parse_number(f"{value:,}") == (value if len(f"{value:,}") <= 300 else None)


@pytest.mark.parametrize(
    ("options", "response", "status"),
    [
        ({}, "6+12=18\n#### 18", "pass"),
        ({}, "#### 18.0", "pass"),
        ({}, "#### 18 dollars", "fail"),  # strict: a number and nothing else
        ({}, "she pays 18", "fail"),  # no marker
        ({}, "#### 17\n#### 18", "pass"),
        ({"extract": "last_number"}, "she pays 18 dollars", "pass"),
        ({"extract": "last_number"}, "18 eggs in 7 days", "fail"),
        ({"extract": "boxed"}, r"\boxed{18}", "pass"),
        ({"extract": "whole"}, " 18", "pass"),
        ({"extract": "whole", "tolerance": 0.1}, "19", "pass"),
        ({"extract": "whole", "tolerance": 0.01}, "19", "fail"),
        ({}, "", "fail"),
    ],
)
def test_number_verifier(options, response, status):
    verdict = NumberVerifier(**options).verify(response, "18")
    assert verdict.status == status and verdict.score == float(status == "pass")


def test_reference_that_is_no_number_is_an_error_not_a_failure():
    (verdict,) = NumberVerifier().verify_many(["#### 5"], ["five"])
    assert verdict.status == "error" and not verdict.usable and "five" in verdict.detail


def test_exact_verifier():
    verifier = ExactVerifier()
    assert verifier.verify("a  b\n", "a b").status == "pass"
    assert verifier.verify("A b", "a b").status == "fail"
    assert ExactVerifier(ignore_case=True).verify("A b", "a b").score == 1.0
    assert ExactVerifier("marker").verify("The answer is yes.", "yes").status == "pass"
    assert verifier.verify("", "a").detail == "no answer"
    assert verifier.verify("a", " ").status == "error"
    assert verifier.verify("e\u0301", "\u00e9").status == "pass"  # one letter, composed or not
    assert [v.status for v in verifier.verify_many(["a", "b"], ["a", "a"])] == ["pass", "fail"]
