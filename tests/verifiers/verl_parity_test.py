r"""Verdicts of this library's verifiers and of verl's on the same answers; where they differ, why.

    pip install torch verl && pytest tests/verifiers/verl_parity_test.py

verl's `math_reward` compares normalised strings, `prime_math` falls back on computer algebra and on floating-point
numbers with a relative tolerance of 1e-4, `gsm8k` compares the digits after ``####`` as a string.
"""

import pytest

from prm_jax.verifiers import MathVerifier, NumberVerifier

pytestmark = pytest.mark.optional

pytest.importorskip("torch", reason="pip install torch verl")
math_reward = pytest.importorskip("verl.utils.reward_score.math_reward", reason="pip install torch verl")
prime_math = pytest.importorskip("verl.utils.reward_score.prime_math", reason="pip install torch verl")
gsm8k = pytest.importorskip("verl.utils.reward_score.gsm8k", reason="pip install torch verl")

# fmt: off
# (reference, answer, right): all three verifiers say so.
SAME = [
    ("42", "42", True),
    ("42", "43", False),
    ("-7", "-7", True),
    ("-7", "7", False),
    ("1/2", r"\frac{1}{2}", True),
    (r"\frac{1}{2}", r"\frac12", True),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", True),
    (r"\frac{1}{2}", r"\tfrac{1}{2}", True),
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{2}", ".5", True),
    (r"\frac{1}{2}", r"\frac{1}{3}", False),
    (r"\frac{3}{4}", r"\frac{4}{3}", False),
    (r"-\frac{1}{3}", r"-\frac13", True),
    (r"-\frac{1}{3}", r"\frac{1}{3}", False),
    (r"\sqrt{2}", r"\sqrt2", True),
    (r"\sqrt{2}", r"\sqrt{3}", False),
    (r"2\sqrt{3}", r"3\sqrt{2}", False),
    (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt3}{2}", True),
    (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt{2}}{3}", False),
    (r"2\pi", r"\pi", False),
    ("x^2+1", "x^2 + 1", True),
    ("x^2+1", "x^2-1", False),
    ("3x+2", "2x+3", False),
    ("y=2x+1", "2x+1", True),
    ("5", "x=5", True),
    ("5", "x=6", False),
    ("(1,2)", "(1, 2)", True),
    ("(1,2)", "(2,1)", False),
    ("[0,1)", r"\left[0,1\right)", True),
    (r"\left(\frac{1}{2},3\right)", r"\left(\frac12, 3\right)", True),
    (r"(-\infty, 2)", r"(-\infty,2)", True),
    ("1,2,3", "1, 2, 3", True),
    ("90", r"90^\circ", True),
    ("90", r"91^\circ", False),
    ("25", r"25\%", True),
    ("10", r"10\text{ cm}", True),
    (r"\$5", "5", True),
    ("3.14", "3.15", False),
    ("0.333", r"\frac{1}{3}", False),
    ("1234", "1.234", False),
    (r"2\frac{1}{2}", "21/2", False),
    (r"\text{Evelyn}", r"\text{Evelyn}", True),
    (r"\text{Evelyn}", r"\text{Bob}", False),
    (r"\text{(A)}", r"\text{(B)}", False),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", False),
]
# (reference, answer, right here, with prime_math, with math_reward, why)
DIFFERENT = [
    ("1000", "1,000", True, True, False, "thousands separators"),
    ("17", "17.0", True, True, False, "decimals are numbers, not strings"),
    (r"\sqrt{8}", r"2\sqrt{2}", True, True, False, "equal expressions"),
    (r"(x+1)^2", "x^2+2x+1", True, True, False, "equal polynomials"),
    (r"\frac{1}{2}", r"\frac{2}{4}", True, False, False, "fractions need not be in lowest terms"),
    ("120", "5!", True, False, False, "factorials"),
    (r"\{1,2\}", r"\{2,1\}", True, False, False, "sets have no order"),
    (r"x \le 2", r"x\leq 2", True, False, False, "two commands for one relation"),
    ("0.5", r"50\%", True, True, False, "a percentage may stand for a ratio"),
    ("50", "0.5", False, True, False, "prime_math also tries a hundredth and a hundredfold of the reference"),
    ("(1,2]", "(1,2)", False, True, False, "prime_math ignores whether an end belongs to the interval"),
    (r"10\text{ m}", r"10\text{ km}", False, True, True, "both drop units"),
    ("11/2", "1 1/2", False, True, True, "1 1/2 is 3/2; both join its digits to 11/2"),
    ("3.1416", r"\pi", False, True, False, "exact values: no decimal stands for pi"),
    ("10000000", "10000001", False, True, False, "integers are exact; the tolerance there is 1e-4"),
]
# fmt: on


@pytest.fixture(name="verifier", scope="module")
def fixture_verifier():
    verifier = MathVerifier()
    yield verifier
    verifier.close()


def verdicts(verifier, reference, answer):
    """(ours, prime_math, math_reward) on a response that boxes the answer."""
    response = f"The final answer is $\\boxed{{{answer}}}$."
    verdict = verifier.verify(response, reference)
    assert verdict.usable, verdict.detail
    theirs = prime_math.compute_score(response, reference)
    return verdict.score == 1.0, bool(theirs[0]), math_reward.compute_score(response, reference) == 1.0


@pytest.mark.parametrize(("reference", "answer", "right"), SAME)
def test_mathematics_agrees(verifier, reference, answer, right):
    assert verdicts(verifier, reference, answer) == (right, right, right)


@pytest.mark.parametrize(("reference", "answer", "ours", "prime", "strings", "why"), DIFFERENT)
def test_mathematics_differs_on_purpose(verifier, reference, answer, ours, prime, strings, why):
    assert verdicts(verifier, reference, answer) == (ours, prime, strings), why


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("72", "72", True),
        ("72", "73", False),
        ("-5", "-5", True),
        ("1200", "1,200", True),
        ("3.5", "3.5", True),
        ("3.5", "35", False),
        ("0", "0", True),
        ("18", "81", False),
    ],
)
def test_numbers_agree(reference, answer, right):
    response = f"48 + 24 is what we need.\n#### {answer}"
    assert (NumberVerifier().verify(response, reference).score == 1.0) == right
    assert (gsm8k.compute_score(response, reference) == 1.0) == right


@pytest.mark.parametrize(
    ("reference", "answer", "why"),
    [
        ("72", "72.0", "one number, two strings"),
        ("72", "72.", "the full stop of a sentence is part of the string there"),
        ("72", "$72", "a currency sign before the number is not found there"),
        ("1,200", "1200", "separators are removed from the answer, but not from the reference there"),
    ],
)
def test_numbers_differ_on_purpose(reference, answer, why):
    response = f"#### {answer}"
    assert NumberVerifier().verify(response, reference).score == 1.0, why
    assert gsm8k.compute_score(response, reference) == 0.0, why
