"""Products that a small model gets right only with a calculator, and a teacher who seldom uses it."""

import numpy as np

from prm_jax.data import Problem, StandardTask, make_task

ALPHABET = "0123456789*=#[]{}?"
MARKERS = ("[", "]", "{", "}")


def make(digits: int = 3, calls: float = 0.1, problems: int = 8192, held_out: int = 256, seed: int = 0) -> StandardTask:
    """``347*829=``, answered with the calculator, ``[347*829]{287663}#287663``, or by an estimate, ``#300000``.

    Args:
      digits: of each factor.
      calls: share of the teacher's solutions that call the calculator; the others estimate the product.
      problems, held_out: number of training and evaluation problems.
      seed: of the problems and of the teacher.
    """
    rng = np.random.default_rng((seed, digits))
    every = 10 ** (2 * digits)
    chosen = rng.choice(every, size=min(problems + held_out, every), replace=False)
    with_calls = rng.random(len(chosen)) < calls
    rows = [_row(int(number), digits, bool(call)) for number, call in zip(chosen, with_calls, strict=True)]
    return make_task(
        rows[held_out:], reward, eval=rows[:held_out], name="products", splitter="newline", alphabet=ALPHABET
    )


def reward(problem: Problem, response: str) -> float:
    """1 when the text after the last ``#`` is the product."""
    before, marker, answer = response.rpartition("#")
    return float(bool(marker) and answer == problem.answer)


def _row(number: int, digits: int, call: bool) -> dict[str, object]:
    left, right = divmod(number, 10**digits)
    asked = f"{left:0{digits}}*{right:0{digits}}"
    answer = str(left * right)
    output = f"{{{answer}}}"
    begun = f"[{asked}]"
    solution = f"{begun}{output}#{answer}" if call else f"#{float(f'{left * right:.0e}'):.0f}"
    forced = [[len(begun), len(begun) + len(output)]] if call else []
    return {"prompt": f"{asked}=", "answer": answer, "solution": solution, "forced": forced}
