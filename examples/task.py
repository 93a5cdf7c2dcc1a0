"""A task of your own: products of one-digit numbers, written as repeated addition.

prm-jax train --preset smoke --task.name examples/task.py:make --task.options largest 5
"""

from prm_jax.data import StandardTask, StepSplitter, make_task


def make(largest: int = 5) -> StandardTask:
    """Problems with worked solutions; `largest` is an option of the task, read as a whole number."""
    problems = [problem(a, b) for a in range(2, largest + 1) for b in range(2, largest + 1)]
    steps = StepSplitter("tag", tags=(";",))
    return make_task(problems, answer, name="products", splitter=steps, alphabet="auto", eval_fraction=0.3)


def problem(a: int, b: int) -> dict[str, str]:
    """A prompt, the reference answer, and a solution whose steps end in a semicolon."""
    sums = ";".join(str(a * k) for k in range(1, b + 1))
    return {"prompt": f"{a}*{b}=", "answer": str(a * b), "solution": f"{sums};#{a * b}"}


def answer(problem, response: str) -> bool:
    """The reward: whether what follows the last ``#`` is the reference."""
    return response.rpartition("#")[2] == problem.answer
