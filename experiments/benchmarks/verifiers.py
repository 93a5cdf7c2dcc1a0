"""Verdicts of the verifiers on pairs of known truth, their speed, and math-verify on the same pairs.

    python -m experiments.benchmarks.verifiers --data DIR [--cases DIR] [--out results.json] [--smoke]

DIR is a folder with ``math500/test500.jsonl``, ``processbench/gsm8k.json`` and ``gsm8k/*.jsonl``; by default it is the
environment variable ``PRM_JAX_DATA``. The cases, ``math_answers.json`` and ``gsm8k_responses.json``, are in ``cases/``
beside it unless ``--cases`` says otherwise.
math-verify (``pip install 'math-verify[antlr4_13_2]'``) is measured where it is installed.

Results, machine and date: ``docs/verifiers.md``.
"""

import argparse
import collections
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prm_jax.verifiers import MathVerifier, NumberVerifier

Counts = dict[str, list[int]]
"""Kind -> right pairs, right pairs passed, wrong pairs, wrong pairs passed."""

REWRITINGS: dict[str, Callable[[str], tuple[str, str]]] = {
    "same": lambda r: (r, r),
    "dfrac": lambda r: (r, r.replace(r"\frac", r"\dfrac")),
    "n =": lambda r: (r, f"n = {r}"),
    "units": lambda r: (r, rf"{r}\text{{ units}}"),
    "square units": lambda r: (r, rf"{r}\ \text{{square units}}" if _has_no_unit(r) else r),
    "money": lambda r: (r, rf"\${r}"),
    "delimiters": lambda r: (r, f"${r}$."),
    "tuples": lambda r: (f"(1,{r})", rf"\left(1, {r}\right)") if _is_value(r) else (r, r),
    "spaces": lambda r: (r, r.replace("+", " + ").replace("-", " - ") + r"\,"),
}


def main() -> None:
    """Runs everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=pathlib.Path, default=os.environ.get("PRM_JAX_DATA"), help="folder of public data"
    )
    parser.add_argument("--cases", type=pathlib.Path, help="folder of the two case files; default: DATA/../cases")
    parser.add_argument("--out", type=pathlib.Path, help="also write the results as JSON")
    parser.add_argument("--smoke", action="store_true", help="a few pairs of each kind")
    options = parser.parse_args()
    if options.data is None:
        parser.error("no data: give --data DIR or set PRM_JAX_DATA")
    cases = options.cases or pathlib.Path(options.data).parent / "cases"
    stride = 25 if options.smoke else 1
    mathematics = json.loads((cases / "math_answers.json").read_text())[::stride]
    numbers = json.loads((cases / "gsm8k_responses.json").read_text())[::stride]
    lines = (pathlib.Path(options.data) / "math500" / "test500.jsonl").read_text().splitlines()
    references = [json.loads(line)["answer"] for line in lines][::stride]
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": sys.version.split()[0],
    }
    for mode in ("lenient", "strict"):
        results[mode] = _judge(mathematics, numbers, mode)
    results["rewritings"] = _rewritings(references)
    results["responses"] = _responses(pathlib.Path(options.data), stride)
    results["throughput"] = _throughput(500 if options.smoke else 20_000)
    if importlib.util.find_spec("math_verify"):
        results["math_verify"] = {"mathematics": _tally(mathematics, "equivalent", _math_verify(mathematics))}
    _print(results)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def _judge(mathematics: Sequence[dict[str, Any]], numbers: Sequence[dict[str, Any]], mode: Any) -> dict[str, Counts]:
    verifier = MathVerifier(mode=mode)
    answers = [rf"\boxed{{{case['answer']}}}" for case in mathematics]
    verdicts = verifier.verify_many(answers, [case["reference"] for case in mathematics])
    verifier.close()
    number = NumberVerifier(mode=mode)
    judged = number.verify_many([case["response"] for case in numbers], [case["reference"] for case in numbers])
    return {
        "mathematics": _tally(mathematics, "equivalent", [verdict.status == "pass" for verdict in verdicts]),
        "numbers": _tally(numbers, "right", [verdict.status == "pass" for verdict in judged]),
    }


def _tally(cases: Sequence[dict[str, Any]], truth: str, passed: Iterable[bool]) -> Counts:
    counts: Counts = collections.defaultdict(lambda: [0, 0, 0, 0])
    for case, verdict in zip(cases, passed, strict=True):
        row = counts[case["kind"]]
        row[0 if case[truth] else 2] += 1
        row[1 if case[truth] else 3] += verdict
    return dict(sorted(counts.items()))


def _rewritings(references: Sequence[str]) -> dict[str, dict[str, int]]:
    """References against themselves, rewritten, and against the rewriting of another reference."""
    verifier = MathVerifier()
    others = _others(references)
    table = {}
    for name, rewrite in REWRITINGS.items():
        own = [rewrite(reference) for reference in references]
        crossed = [
            (rewrite(reference)[0], rewrite(other)[1])
            for reference, other in zip(references, others, strict=True)
            if name != "tuples" or _is_value(reference) == _is_value(other)
        ]
        row = {}
        for key, pairs in (("own", own), ("crossed", crossed)):
            verdicts = verifier.verify_many(
                [rf"\boxed{{{answer}}}" for _, answer in pairs], [gold for gold, _ in pairs]
            )
            row[key] = len(pairs)
            row[f"{key} passed"] = sum(verdict.status == "pass" for verdict in verdicts)
        table[name] = row
    verifier.close()
    return table


def _responses(data: pathlib.Path, stride: int) -> dict[str, list[int]]:
    """Verdicts on responses of models to GSM8K, against ProcessBench's label of the final answer.

    Returns:
      Verifier -> right responses, right ones passed, wrong responses, wrong ones passed.
    """
    golds = {}
    for name in ("train", "test"):
        for line in (data / "gsm8k" / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            golds[" ".join(row["question"].split())] = row["answer"].rpartition("####")[2].strip()
    rows = json.loads((data / "processbench" / "gsm8k.json").read_text())[::stride]
    found = [(row, gold) for row in rows if (gold := golds.get(" ".join(row["problem"].split())))]
    table = {}
    for name, verifier in (
        ("lenient, ladder", NumberVerifier()),
        ("lenient, anywhere", NumberVerifier(extract="anywhere")),
        ("strict, ladder", NumberVerifier(mode="strict")),
    ):
        counts = [0, 0, 0, 0]
        for row, gold in found:
            passed = verifier.verify("\n".join(row["steps"]), gold).status == "pass"
            counts[0 if row["final_answer_correct"] else 2] += 1
            counts[1 if row["final_answer_correct"] else 3] += passed
        table[name] = counts
    return table


def _others(references: Sequence[str]) -> list[str]:
    """For each reference another one that is written differently even without unit, name and spaces."""
    bare = [_bare(reference) for reference in references]
    others = []
    for index, text in enumerate(bare):
        step = next(k for k in range(1, len(bare)) if bare[(index + k) % len(bare)] != text)
        others.append(references[(index + step) % len(bare)])
    return others


def _bare(reference: str) -> str:
    for piece in (r"^\circ", r"\$", "x=", r"\left", r"\right", r"\!", " ", "dfrac"):
        reference = reference.replace(piece, "frac" if piece == "dfrac" else "")
    return reference


def _has_no_unit(reference: str) -> bool:
    return not any(piece in reference for piece in ("text", "mbox", "circ", "$"))


def _is_value(reference: str) -> bool:
    """Whether a reference is one value that can be a coordinate."""
    return _has_no_unit(reference) and not any(
        piece in reference for piece in (",", "=", "in ", "_", "matrix", "cup", "pm")
    )


def _throughput(count: int) -> dict[str, float]:
    """Answers per second of processor time, all different."""
    number, mathematics = NumberVerifier(), MathVerifier()
    responses = [f"She sells {k} eggs.\n#### {k * 7 % 10_007}" for k in range(count)]
    golds = [str(k * 7 % 10_007 + k % 2) for k in range(count)]
    boxed = [rf"so the total is $\boxed{{{k * 7 % 10_007}}}$." for k in range(count)]
    hard = [rf"\boxed{{{k}\sqrt{{2}}+{k + 1}x}}" for k in range(count // 20)]
    hard_golds = [rf"{k + 1}x+\sqrt{{{2 * k * k}}}" for k in range(count // 20)]
    mathematics.verify_many(hard[:2], hard_golds[:2])
    rates = {}
    for name, verifier, texts, references in (
        ("NumberVerifier, plain numbers", number, responses, golds),
        ("MathVerifier, plain numbers", mathematics, boxed, golds),
        ("MathVerifier, roots and symbols, wall", mathematics, hard, hard_golds),
    ):
        clock = time.perf_counter if name.endswith("wall") else time.process_time
        start = clock()
        verifier.verify_many(texts, references)
        rates[name] = len(texts) / (clock() - start)
    mathematics.close()
    return rates


def _math_verify(cases: Sequence[dict[str, Any]]) -> list[bool]:
    """Verdicts of math-verify as its documentation uses it."""
    from math_verify import parse, verify

    verdicts = []
    for case in cases:
        try:
            gold, answer = parse(f"${case['reference']}$"), parse(rf"$\boxed{{{case['answer']}}}$")
            verdicts.append(bool(verify(gold, answer)))
        except Exception:  # a third-party checker that fails has not passed the answer
            verdicts.append(False)
    return verdicts


def _print(results: dict[str, Any]) -> None:
    print(f"{results['machine']}, Python {results['python']}")
    for mode in ("lenient", "strict", "math_verify"):
        for name, counts in results.get(mode, {}).items():
            total = [sum(row[k] for row in counts.values()) for k in range(4)]
            print(f"\n{mode}, {name}: right passed {total[1]}/{total[0]}, wrong passed {total[3]}/{total[2]}")
            for kind, (right, right_passed, wrong, wrong_passed) in counts.items():
                print(f"  {kind:14} {right_passed:3}/{right:3} {wrong_passed:3}/{wrong:3}")
    print("\nMATH-500 references, rewritten")
    for name, row in results["rewritings"].items():
        print(f"  {name:14} own {row['own passed']}/{row['own']}   crossed {row['crossed passed']}/{row['crossed']}")
    print("\nResponses of models to GSM8K: right passed, wrong passed")
    for name, (right, right_passed, wrong, wrong_passed) in results["responses"].items():
        print(f"  {name:18} {right_passed}/{right} {wrong_passed}/{wrong}")
    for name, rate in results["throughput"].items():
        print(f"{name}: {rate:,.0f} per second")


if __name__ == "__main__":
    main()
