"""Formats of critiques: what a judge is asked, and where in its answer the verdicts are.

The verdicts are written as the published models write them: ThinkPRM, arXiv 2504.16828; GenPRM, arXiv 2504.00891;
R-PRM, arXiv 2503.21295. The instructions are this project's own and can be replaced.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from prm_jax.data.problems import Prompt
from prm_jax.errors import UserError
from prm_jax.resolve import resolve

PLACEHOLDERS = ("problem", "steps", "lines", "previous", "step", "reference")


@dataclasses.dataclass(frozen=True)
class CritiqueFormat:
    r"""How critiques are asked for and read.

    Attributes:
      scope: "solution", one critique judges the steps in order and may stop after the first wrong one; "step", every
        step has a critique of its own.
      instruction: with placeholders in braces: {problem}; {steps}, numbered, or {lines}, one per line; for scope
        "step" {previous}, the steps before, and {step}; {reference}, `reference` with the answer, or nothing. Other
        braces stay as they are.
      verdict: regular expression with a group "verdict". Scope "solution" reads its matches in the order of the steps,
        scope "step" the last one.
      right: the verdict, in lower case, that says right; any other says wrong.
      written: (right, wrong) verdicts as a critique without reasoning writes them; {number} is the step's.
      reference: what {reference} becomes for a judge that is told the answer; {answer} is the answer.
      stop: strings that end a critique.
    """

    scope: Literal["solution", "step"]
    instruction: str
    verdict: str
    right: str
    written: tuple[str, str]
    reference: str = "The correct final answer is {answer}.\n\n"
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.verdict).groupindex
        except re.error as error:
            raise UserError(f"the verdict {self.verdict!r} of a critique format is not a pattern: {error}") from error
        if "verdict" not in groups:
            raise UserError(f"the pattern {self.verdict!r} of a critique format has no group (?P<verdict>...)")

    def prompt(self, problem: str, steps: Sequence[str], *, step: int | None = None, answer: str | None = None) -> str:
        """What the judge reads.

        Args:
          problem: the problem's text.
          steps: of the solution.
          step: index of the step to judge, for scope "step".
          answer: the correct answer, for a judge that is told it.
        """
        plain = [text.strip() for text in steps]
        values = {
            "problem": problem.strip(),
            "steps": _numbered(plain),
            "lines": "\n".join(plain),
            "previous": _numbered(plain[:step]) or "(none)",
            "step": "" if step is None else plain[step],
            "reference": "" if answer is None else self.reference.replace("{answer}", answer),
        }
        return _filled(self.instruction, values)

    def verdicts(self, text: str, steps: int) -> list[tuple[int, bool, tuple[int, int]]]:
        """The verdicts in a critique: (index, says right, characters of the verdict's word); index 0 for scope "step".

        Args:
          text: what the judge wrote.
          steps: of the solution; verdicts beyond them are ignored.
        """
        found = list(re.finditer(self.verdict, text, re.IGNORECASE | re.DOTALL))
        found = found[-1:] if self.scope == "step" else found[:steps]
        return [
            (index, match["verdict"].lower() == self.right, match.span("verdict")) for index, match in enumerate(found)
        ]

    def write(self, labels: Sequence[bool]) -> str:
        """A critique without reasoning: the verdicts alone, up to the first wrong one."""
        last = next((index for index, right in enumerate(labels) if not right), len(labels) - 1)
        return "".join(
            self.written[0 if right else 1].replace("{number}", str(index + 1))
            for index, right in enumerate(labels[: last + 1])
        )


FORMATS: Mapping[str, CritiqueFormat] = {
    "thinkprm": CritiqueFormat(
        scope="solution",
        instruction=(
            "{problem}\n\nA proposed solution:\n{steps}\n\n{reference}Judge the steps in order. For each write "
            '"Step k:", your reasons, and then "The step is \\boxed{correct}" or "The step is \\boxed{incorrect}". '
            "Stop after the first incorrect step."
        ),
        verdict=r"\\boxed\{\s*(?:\\text\{)?(?P<verdict>correct|incorrect)\b",
        right="correct",
        written=("Step {number}: The step is \\boxed{correct}\n", "Step {number}: The step is \\boxed{incorrect}\n"),
    ),
    "genprm": CritiqueFormat(
        scope="step",
        instruction=(
            "{problem}\n\nThe solution so far:\n{previous}\n\nThe next step:\n{step}\n\n{reference}Examine the next "
            "step inside <analyze> and </analyze>, check it with Python inside <verify> and </verify> if that helps, "
            "and say whether it is right inside <output> and </output>: **Judgement**: $\\boxed{Yes}$ or $\\boxed{No}$."
        ),
        verdict=r"\\boxed\{\s*(?P<verdict>yes|no)\s*\}",
        right="yes",
        written=(
            "<output>\n**Judgement**: $\\boxed{Yes}$\n</output>",
            "<output>\n**Judgement**: $\\boxed{No}$\n</output>",
        ),
        stop=("</output>",),
    ),
    "r_prm": CritiqueFormat(
        scope="step",
        instruction=(
            "Question: {problem}\n\nPrevious Steps: {previous}\n\nNow Step: {step}\n\n{reference}Analyse the previous "
            "steps, what the Now Step claims, where its numbers come from, whether it is consistent, and its "
            'calculations. End with "Verification: Is the step correct (Yes/No)?" and your verdict.'
        ),
        verdict=r"Is the step correct \(Yes/No\)\?\W*(?P<verdict>yes|no)\b",
        right="yes",
        written=(
            "Verification: Is the step correct (Yes/No)? Yes",
            "Verification: Is the step correct (Yes/No)? No",
        ),
    ),
    "brief": CritiqueFormat(
        scope="solution",
        instruction="{problem}\n{lines}\n{reference}",
        verdict=r"(?P<verdict>[+-])",
        right="+",
        written=("+", "-"),
        reference="{answer}\n",
        stop=("\n",),
    ),
}
"""Built-in formats by name. brief has no reasoning: one + or - per step, for small models."""


def find_format(name: str, *, instruction: str = "", option: str = "") -> CritiqueFormat:
    """The format of a name.

    Args:
      name: one of `FORMATS`, or ``package.module:function`` or ``file.py:function``, a function without arguments that
        returns a `CritiqueFormat`.
      instruction: replaces the format's own; "": keeps it.
      option: the command-line option that gave the name, for messages.

    Raises:
      UserError: an unknown name, a function that returns something else, or an instruction that does not show the
        problem and the steps.
    """
    made = {key: (lambda known=known: known) for key, known in FORMATS.items()}
    found = resolve(name, made, "critique format", option=option)()
    if not isinstance(found, CritiqueFormat):
        raise UserError(f"the critique format {name!r} returned a {type(found).__name__}, expected a CritiqueFormat")
    if not instruction:
        return found
    wanted = ("{step}",) if found.scope == "step" else ("{steps}", "{lines}")
    if "{problem}" not in instruction or not any(place in instruction for place in wanted):
        raise UserError(
            f"the instruction of a critique must contain {{problem}} and {' or '.join(wanted)}, found "
            f"{instruction.strip()[:60]!r}"
        )
    return dataclasses.replace(found, instruction=instruction)


def problem_text(prompt: Prompt, name: str) -> str:
    """The problem as text: a text itself, or the last message of a chat.

    Raises:
      UserError: a prompt of token ids; `name` is the solution's.
    """
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1] if prompt else None
    if isinstance(last, Mapping):
        return str(last["content"])
    raise UserError(f"{name}: a critique needs the problem as text, but this prompt is a list of token ids")


def _numbered(steps: Sequence[str]) -> str:
    return "\n".join(f"Step {number}: {text}" for number, text in enumerate(steps, start=1))


def _filled(template: str, values: Mapping[str, str]) -> str:
    """All placeholders replaced at once, so that braces in a value are not read as placeholders."""
    return re.sub(r"\{(" + "|".join(PLACEHOLDERS) + r")\}", lambda match: values[match[1]], template)
