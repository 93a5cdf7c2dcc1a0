"""Mathematical answers: verdicts on pairs of known truth, references, and the limits before any parser."""

import json
import random
import time

import pytest

from prm_jax.errors import UserError
from prm_jax.verifiers import MathPool, MathVerifier, check_reference, check_references
from prm_jax.verifiers.lexer import tokens
from prm_jax.verifiers.limits import MAX_LENGTH
from tests.verifiers.math_pairs import PAIRS
from tests.verifiers.math_writings import WRITINGS

pytest.importorskip("mpmath", reason="needs the extra 'math'")


@pytest.fixture(scope="module")
def pool():
    pool = MathPool(workers=2, timeout=10.0)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def verifier(pool):
    return MathVerifier(extract="whole", pool=pool)


@pytest.fixture(scope="module")
def strict(pool):
    return MathVerifier(extract="whole", pool=pool, mode="strict")


# (reference, answer, status)
TABLE = [
    ("5", "5", "pass"),
    ("5", " 5. ", "pass"),
    ("5", "$5$", "pass"),
    ("5", "6", "fail"),
    (r"\frac12", "0.5", "pass"),
    (r"\frac{1}{3}", "0.333333", "pass"),  # six places
    (r"\frac{1}{3}", "0.33", "fail"),
    ("1,234", "1234", "pass"),
    (r"10,\!080", "10080", "pass"),
    ("-2", "\u22122", "pass"),
    (r"10\%", "10", "pass"),
    (r"10\%", "0.1", "fail"),
    (r"90^\circ", "90", "pass"),
    ("16", "2^4", "pass"),
    (r"3\sqrt{2}", r"\sqrt{18}", "pass"),
    (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2", "pass"),
    (r"2\pi", "2*pi", "pass"),
    (r"2\pi", "2\u03c0", "pass"),
    ("x^2+1", "1+x^2", "pass"),
    ("x^2+1", "x^2-1", "fail"),
    ("(1,2)", "(1, 2)", "pass"),
    ("(1,2)", "(2,1)", "fail"),
    ("[0,1)", r"0 \le x < 1", "pass"),
    (r"\{3,5\}", "5,3", "pass"),
    (r"\begin{pmatrix} 1/5 \\ 2 \end{pmatrix}", r"\begin{pmatrix} \frac{2}{10} \\ 2 \end{pmatrix}", "pass"),
    # Words are words: a product of letters would equal its anagrams.
    (r"\text{east}", "east", "pass"),
    (r"\text{east}", "seat", "fail"),
    (r"\text{(A)}", "A", "pass"),
    (r"\text{(A)}", "B", "fail"),
    (r"\text{on}", "no", "fail"),
    ("xy", "yx", "pass"),
    ("3,5", r"3 \text{ and } 5", "pass"),
    ("12", "twelve", "fail"),
    # Equations and hedges.
    ("5", "x=5", "pass"),
    ("5", "x=6", "fail"),
    ("x=5", "5", "pass"),
    ("5", "5=5", "fail"),
    ("5", "4+1=5", "fail"),
    ("5", "x=y=5", "fail"),
    ("5", r"3 \text{ or } 5", "fail"),
    ("5", "3 or 5", "fail"),
    ("5", "3, 5", "fail"),
    ("5", "5$ or $6", "fail"),
    # What is no answer.
    ("5", "", "fail"),
    ("5", "\U0001f600", "fail"),
    ("5", "\uff15", "fail"),
    ("5", "\\boxed{", "fail"),
    ("5", "5\0", "fail"),
    ("5", "\ud800", "fail"),
    ("a_1", "a_1", "pass"),
    ("5", "a_1", "fail"),
    # References that cannot be judged by are errors, never failures.
    ("", "5", "error"),
    (r"\frac{", "x+3", "error"),
    ("9" * 1000, "5", "error"),
]


@pytest.mark.parametrize(("gold", "answer", "status"), TABLE)
def test_table_of_verdicts(verifier, gold, answer, status):
    verdict = verifier.verify(answer, gold)
    assert verdict.status == status, verdict
    assert verdict.score == float(status == "pass")


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs_of_known_truth(verifier, kind):
    found, expected = {}, {}
    for reference, right, wrong in PAIRS[kind]:
        for answers, passes in ((right, True), (wrong, False)):
            for answer, verdict in zip(answers, verifier.verify_many(answers, [reference] * len(answers)), strict=True):
                found[reference, answer] = verdict.status
                expected[reference, answer] = "pass" if passes else "fail"
    assert found == expected


@pytest.mark.parametrize("kind", WRITINGS)
def test_writings_of_known_truth(verifier, kind):
    references, right, wrong = WRITINGS[kind]
    for reference in references:
        verdicts = verifier.verify_many([*right, *wrong], [reference] * (len(right) + len(wrong)))
        passed = [answer for answer, verdict in zip([*right, *wrong], verdicts, strict=True) if verdict.score]
        assert passed == right, reference


def test_strict_mode_passes_nothing_wrong(strict):
    wrong = [(answer, row[0]) for rows in PAIRS.values() for row in rows for answer in row[2]]
    wrong += [(answer, gold) for golds, _, answers in WRITINGS.values() for gold in golds for answer in answers]
    verdicts = strict.verify_many([answer for answer, _ in wrong], [reference for _, reference in wrong])
    assert [pair for pair, verdict in zip(wrong, verdicts, strict=True) if verdict.status == "pass"] == []


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("36", r"36\text{ cm}"),
        (r"36\text{ cm}", "36"),
        ("2516_8", "2516"),
        (r"\frac13", "0.333333"),
        ("1000", "1 000"),
        (r"\text{(E)}", r"\text{(E)} 5"),
        ("0.5", r"50\%"),
        ("6:15", r"6:15\text{ p.m.}"),
    ],
)
def test_what_only_lenient_mode_passes(verifier, strict, reference, answer):
    assert verifier.verify(answer, reference).status == "pass"
    assert strict.verify(answer, reference).status == "fail"


def test_strict_mode_passes_other_writings_of_the_same_value(strict):
    pairs = [("0.5", r"\frac12"), ("(1,2)", r"\left(1, 2\right)"), (r"5\text{ cm}", r"5\,\mathrm{cm}"), ("5", "x=5")]
    assert all(strict.verify(answer, reference).status == "pass" for reference, answer in pairs)


def test_handed_cases(pool, data_dir):
    path = data_dir.parent / "cases" / "math_answers.json"
    if not path.is_file():
        pytest.skip(f"no cases at {path}")
    cases = json.loads(path.read_text())
    for mode in ("lenient", "strict"):
        verifier = MathVerifier(pool=pool, mode=mode)
        answers = [rf"\boxed{{{case['answer']}}}" for case in cases]
        verdicts = verifier.verify_many(answers, [case["reference"] for case in cases])
        passed = [verdict.status == "pass" for verdict in verdicts]
        false = [case for case, verdict in zip(cases, passed, strict=True) if verdict and not case["equivalent"]]
        right = sum(case["equivalent"] for case in cases)
        assert false == []
        assert sum(passed) >= (0.97 if mode == "lenient" else 0.8) * right


def test_boxes(pool):
    boxed = MathVerifier(pool=pool)
    cases = [
        (r"\boxed{3}, no: \boxed{5}", "5", "fail"),  # several different answers are no answer
        (r"\boxed{0.5}, that is \boxed{\frac12}", r"\frac12", "pass"),
        (r"<think>\boxed{3}?</think> \boxed{5}", "5", "pass"),
        (r"\boxed{so \boxed{5}}", "5", "pass"),
        (r"\boxed{\boxed{5}\boxed{6}}", "6", "fail"),
        ("5", "5", "fail"),
        (r"so \boxed{\frac{2}{4}}", r"\frac12", "pass"),
        (r"\boxed{5", "5", "fail"),
        (r"\boxed{y+x}", "x+y", "pass"),
    ]
    verdicts = boxed.verify_many([response for response, _, _ in cases], [reference for _, reference, _ in cases])
    assert [verdict.status for verdict in verdicts] == [status for _, _, status in cases]
    assert verdicts[0].no_answer and verdicts[5].no_answer and not verdicts[4].status == "pass"
    assert MathVerifier(pool=pool, several="last").verify(cases[0][0], "5").status == "pass"
    assert boxed.verify_many([], []) == []


def test_ladder(pool):
    verifier = MathVerifier(pool=pool, extract="ladder")
    for response in (r"\boxed{\frac12}", "<answer>0.5</answer>", "#### 1/2", r"The answer is $\frac{1}{2}$."):
        assert verifier.verify(response, r"\frac12").status == "pass"


def test_references_of_real_problems_judge_their_own_solutions(pool, data_dir):
    lines = (data_dir / "math500" / "test500.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    boxed = MathVerifier(pool=pool)
    verdicts = boxed.verify_many([row["solution"] for row in rows], [row["answer"] for row in rows])
    assert all(v.status == "pass" for v in verdicts)
    assert not any(boxed.check_references([row["answer"] for row in rows]))
    # The next problem's answer is wrong, apart from the few that happen to be the same.
    rows = rows[::10]
    others = [row["solution"] for row in rows[1:] + rows[:1]]
    verdicts = boxed.verify_many(others, [row["answer"] for row in rows])
    assert sum(v.status == "pass" for v in verdicts) <= 2
    assert sum(v.status == "error" for v in verdicts) == 0


@pytest.mark.parametrize(
    ("kind", "reference", "fault"),
    [
        ("exact", "yes", ""),
        ("exact", " ", "empty"),
        ("number", "1,234", ""),
        ("number", "five", "not a number"),
        ("math", r"\frac12", ""),
        ("math", r"\text{Evelyn}", ""),
        ("math", r"\text{(E)}", ""),
        ("math", "", "empty"),
        ("math", r"\frac{1", "cannot be read"),
        ("math", r"\int_0^1 x\,dx", "cannot be read"),
        ("math", "9" * 100, "more than 60 digits"),
        ("math", "x" * (MAX_LENGTH + 1), "characters"),
        ("math", "9^{9^{9^9}}", "stacks powers"),
        ("math", "(" * 40 + "1" + ")" * 40, "nested"),
    ],
)
def test_check_reference(kind, reference, fault):
    found = check_reference(reference, kind)
    assert (fault in found) if fault else found == ""


def test_slow_references_are_found_when_a_task_loads(pool):
    verifier = MathVerifier(pool=MathPool(workers=1, timeout=0.4))
    faults = check_references(verifier, ["5", "(9999!)!", "x^{2}+1", "2^{2020}"])
    verifier.close()
    assert [bool(fault) for fault in faults] == [False, True, False, False] and "longer than" in faults[1]
    assert check_references(object(), ["5"]) == [""]


def test_unknown_kind_of_reference():
    with pytest.raises(UserError, match="expected 'exact', 'number' or 'math'"):
        check_reference("5", "maths")


@pytest.mark.parametrize("text", ["5 6", r"5\,6", r"1 \quad 0", "5\u20096"])
def test_digits_are_never_joined(text):
    assert len([token for token in tokens(text) if token.kind == "num"]) == 2


def test_mutated_answers_never_raise(verifier):
    """Characters of right answers are lost, added and mixed with other answers, for references of every form."""
    rng = random.Random(0)
    known = [(golds[0], [golds[0], *right]) for golds, right, _ in WRITINGS.values()]
    pieces = [*"0123456789xyn+-*/^_=(){}[]\\,. $&|<>!%:;'", r"\frac", r"\pm", r"\cup", r"\text{", " or ", r"\infty"]
    pairs = []
    for _ in range(1500):
        reference, answers = rng.choice(known)
        answer = rng.choice(answers)
        at = rng.randrange(len(answer) + 1)
        other = rng.choice(known)[0]
        change = rng.choice([rng.choice(pieces), "", other[rng.randrange(len(other)) :]])
        pairs.append((answer[:at] + change + answer[at + rng.randrange(2) :], rng.choice([reference, other])))
    verdicts = verifier.verify_many([answer for answer, _ in pairs], [reference for _, reference in pairs])
    assert {verdict.status for verdict in verdicts} <= {"pass", "fail"}
    swapped = verifier.verify_many([reference for _, reference in pairs], [answer for answer, _ in pairs])
    assert {verdict.status for verdict in swapped} <= {"pass", "fail", "error"}


HOSTILE = [
    r"\boxed{",
    "{",
    "}",
    "^",
    "_",
    r"\frac",
    r"\sqrt",
    "(",
    "|",
    "1,",
    r"\pm",
    "-",
    r"\text{",
    r"\left(",
    "0.3",
    "a=",
    "<",
]


def test_hostile_answers_are_decided_quickly(verifier):
    start = time.process_time()
    for piece in HOSTILE:
        for length in (MAX_LENGTH, 100_000):
            text = (piece * length)[:length]
            assert verifier.verify(text, "x+1").status == "fail"
    nested = r"\boxed{" * 100_000 + "5" + "}" * 100_000
    assert MathVerifier(pool=verifier.pool).verify(nested, "6").status == "fail"
    assert time.process_time() - start < 5.0
