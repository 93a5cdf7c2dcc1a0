"""What a task is, in a few lines for the start of a run: problems, verifier, answer extraction, one worked example."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from prm_jax.data.problems import Problem, Prompt, Task
from prm_jax.verifiers.custom import FunctionVerifier, WeightedVerifier
from prm_jax.verifiers.verdict import Verdict

_FORMS = ("#### {}", "\\boxed{{{}}}", "The answer is {}.", "{}", "#{}", "<answer>{}</answer>")
_PLACES = {
    "whole": "the whole response",
    "boxed": "\\boxed{{...}}",
    "tags": "<answer>...</answer>",
    "marker": "what follows {markers}",
    "ladder": "\\boxed{{...}}, <answer>...</answer> or what follows {markers}",
    "anywhere": "\\boxed{{...}}, <answer>...</answer>, what follows {markers}, or the last number",
    "last_number": "the last number",
}
_WITHOUT_ANSWER = "I do not know."


def describe_task(task: Task, *, width: int = 100) -> str:
    """Describes a task with one worked example.

    Args:
      task: any task.
      width: longer texts of the example are cut.

    Returns:
      Lines without a final newline: the number of problems, the verifier and where it looks for answers, the steps,
      and one problem with its reference, a response that passes and how a response without an answer is judged. When
      none of the usual ways to write an answer passes, this is said, since training could not learn from such a task.
    """
    lines = [
        f"task       {task.name}: {_count(task.train)} training problems, {_count(task.eval)} for evaluation",
        f"verifier   {describe_verifier(getattr(task, 'verifier', None))}",
        f"steps      {_steps(task.splitter)}",
    ]
    problem = next((problems[0] for problems in (task.train, task.eval) if len(problems)), None)
    if problem is not None:
        lines += _example(task, problem, width)
    lines += [f"note       {note}" for note in getattr(task, "notes", [])]
    return "\n".join(lines)


def describe_verifier(verifier: Any) -> str:
    """A verifier and where it finds the answer, in a phrase."""
    if verifier is None:
        return "the task's own"
    if isinstance(verifier, WeightedVerifier):
        return " + ".join(f"{weight:g} * ({describe_verifier(part)})" for part, weight in verifier.parts)
    if isinstance(verifier, FunctionVerifier):
        return f"the function {verifier.name}"
    name = type(verifier).__name__.removesuffix("Verifier").lower() or type(verifier).__name__
    extract = getattr(verifier, "extract", None)
    if extract is None:
        return name
    place = _PLACES.get(extract) if isinstance(extract, str) else getattr(extract, "__name__", repr(extract))
    markers = " or ".join(map(repr, getattr(verifier, "markers", ())))
    mode = f", {verifier.mode}" if hasattr(verifier, "mode") else ""
    return f"{name}{mode}, reading {(place or str(extract)).format(markers=markers)}"


def _example(task: Task, problem: Problem, width: int) -> list[str]:
    def shown(text: str) -> str:
        return _one_line(text, width)

    prompt = _one_line(_prompt_text(problem.prompt), width, end=True)
    lines = [f"prompt     {prompt}", f"reference  {shown(problem.answer)}"]
    passing = next((text for text in _responses(problem) if _verdict(task, problem, text).score == 1.0), None)
    if passing is None:
        lines.append("passes     none of the usual ways to write the reference answer; check the verifier")
    else:
        pieces = [passing[start:end] for start, end in task.splitter(passing)]
        lines.append(f"passes     {shown(passing)}" + (f" ({len(pieces)} steps)" if len(pieces) > 1 else ""))
    verdict = _verdict(task, problem, _WITHOUT_ANSWER)
    detail = f": {verdict.detail}" if verdict.detail else ""
    lines.append(f"otherwise  {_WITHOUT_ANSWER!r} gets {verdict.score:g} ({verdict.status}{detail})")
    return lines


def _one_line(text: str, width: int, *, end: bool = False) -> str:
    """Text on one line, cut at its beginning or end; control characters as escapes."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    if len(line) <= width:
        return line
    return f"... {line[-width:]}" if end else f"{line[:width]} ..."


def _responses(problem: Problem) -> Iterator[str]:
    solution = problem.metadata.get("solution")
    if isinstance(solution, str):
        yield solution
    for form in _FORMS:
        yield form.format(problem.answer)


def _verdict(task: Task, problem: Problem, response: str) -> Verdict:
    return task.verify_many([problem], [response])[0]


def _prompt_text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(item.get("content", "")) if hasattr(item, "get") else str(item) for item in prompt)


def _steps(splitter: Any) -> str:
    if not dataclasses.is_dataclass(splitter):
        return f"cut by {splitter!r}"
    parts = {"tag": ("tags", "after"), "regex": ("pattern", "after matches of"), "function": ("function", "by")}
    how = getattr(splitter, "how", "")
    field, word = parts.get(how, ("", ""))
    value = getattr(splitter, field, None) if field else None
    words = ", ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)
    shown = getattr(value, "__name__", words)
    cut = f"cut {word} {shown}" if field else f"cut by {how}"
    markers = getattr(splitter, "answer_markers", ())
    return f"{cut}; an answer marker ({', '.join(map(repr, markers))}) starts a step" if markers else cut


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems):,}"
