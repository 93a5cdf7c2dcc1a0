"""The data sets of reasoning-gym as tasks: full scores only, and no scorer that runs what a model wrote."""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prm_jax.data.problems import Problem, Prompt, is_eval
from prm_jax.data.procedural import DrawnProblems, DrawnTask, draw_distinct
from prm_jax.data.steps import StepSplitter
from prm_jax.errors import UserError, require
from prm_jax.option_values import convert_options, suggest
from prm_jax.verifiers.extraction import ANSWER_MARKERS, Where, find_answer
from prm_jax.verifiers.verdict import Verdict, failed, passed

MAX_ANSWER = 2000
MAX_EXPRESSION = 300

_EVALUATES = re.compile(r"(?<![\w.])(?:\w+\.)?(?:eval|exec|parse_expr|sympify)\(")
_FUNCTIONS = frozenset({"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "pi"})
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[0-9]{1,15}(?:\.[0-9]{1,15})?(?![\w.]))
    |(?P<name>[A-Za-z]+|_(?!_))
    |(?P<string>'[^'"\\\n]{0,40}'|"[^'"\\\n]{0,40}")
    |(?P<power>\*\*|\^)
    |(?P<sign>[-+*/,=])
    |(?P<open>[(\[])
    |(?P<close>[)\]]))""",
    re.VERBOSE,
)


class GymTask(DrawnTask):
    """A data set of reasoning-gym, by name.

    Problem i is entry ``hash(seed, i) mod size`` of the data set; those whose question's hash falls into the
    evaluation share are for evaluation. A response passes only with the full score of 1.0: the data sets give partial
    credit for long answers that contain the right one, and even for wrong ones, which a policy learns to exploit.

    The scorers of some data sets (countdown, puzzle24, integrals, matrices written as lists) hand the answer to
    Python's ``eval``. There an answer other than the reference's text must be a short, harmless expression
    (``is_harmless``) before the scorer sees it.

    Args:
      dataset: the name, ``"chain_sum"`` for example.
      options: of the data set; checked against its configuration.
      size: entries of the data set to draw from; a few data sets (acre) make all of them at once.
      num_train: training problems in an epoch; made when they are read, with replacement.
      num_eval: maximum number of evaluation problems; all different.
      seed: of the problems.
      instruction: appended to the question after a blank line.
      chat: give the prompt as one chat message.
      extract: where the answer is in a response, as for ``find_answer``.
      markers: for ``extract="marker"``.

    Raises:
      MissingExtraError: when reasoning-gym is not installed.
      UserError: for an unknown data set or option, or a value that the data set refuses.
    """

    def __init__(
        self,
        dataset: str,
        *,
        options: Mapping[str, Any] | None = None,
        size: int = 1 << 15,
        num_train: int = 1 << 14,
        num_eval: int = 128,
        seed: int = 0,
        instruction: str = "",
        chat: bool = False,
        extract: Where = "whole",
        markers: tuple[str, ...] = ANSWER_MARKERS,
    ) -> None:
        self.name = f"gym:{dataset}"
        self.splitter = StepSplitter("newline", answer_markers=markers if extract == "marker" else ())
        self.stop: tuple[str, ...] = ()
        self._extract, self._markers = extract, markers
        self._instruction, self._chat = instruction, chat
        self._dataset = _create(dataset, dict(options or {}), size, seed)
        self._evaluates = bool(_EVALUATES.search(inspect.getsource(type(self._dataset).score_answer)))
        self._entry = functools.lru_cache(maxsize=4096)(self._dataset.__getitem__)
        shown = {name: str(value) for name, value in sorted((options or {}).items())}
        key = ("gym", dataset, shown, size, seed, instruction, chat)

        def draw(words: Iterator[int]) -> int:
            return next(words) % size

        train = (*key, "train")
        self._train = DrawnProblems(num_train, draw, lambda index: not self._is_eval(index), self._problem, train)
        rows = draw_distinct(draw, self._is_eval, self._question, num_eval, (*key, "eval"))
        self._eval = [self._problem(row) for row in rows]

    def tokenizer(self) -> None:
        """None: the model brings its tokenizer."""
        return None

    def verify(self, problem: Problem, response: str) -> float:
        """1.0 if the data set gives the answer its full score, otherwise 0.0."""
        return self._verdict(problem, response).score

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response."""
        return [self._verdict(p, r) for p, r in zip(problems, responses, strict=True)]

    def step_labels(self, problem: Problem, response: str) -> None:
        """None: what the steps should be is not known."""
        return None

    def demonstrations(self, rng: Any, count: int) -> list[tuple[Prompt, str]]:
        """(prompt, reference answer) pairs for supervised training, on training problems drawn at random."""
        problems = [self._train[int(index)] for index in rng.integers(len(self._train), size=count)]
        marker = f"{self._markers[0]} " if self._extract == "marker" else ""
        return [(problem.prompt, marker + problem.answer) for problem in problems]

    def _verdict(self, problem: Problem, response: str) -> Verdict:
        answer = find_answer(response, self._extract, markers=self._markers)
        if answer is None or len(answer) > MAX_ANSWER:
            return failed("no answer" if answer is None else f"the answer has more than {MAX_ANSWER} characters")
        if answer == problem.answer.strip():
            return passed()
        if self._evaluates and not is_harmless(answer):
            return failed("the answer is not a plain expression")
        try:
            score = self._dataset.score_answer(answer, self._entry(problem.metadata["index"]))
        except Exception as error:  # scorers raise anything on unexpected text
            return failed(f"the scorer refused the answer: {type(error).__name__}")
        return passed() if score == 1.0 else failed(f"the data set gives it {score:.3g}")

    def _question(self, index: int) -> str:
        return self._entry(index)["question"]

    def _is_eval(self, index: int) -> bool:
        return is_eval(self._question(index))

    def _problem(self, index: int) -> Problem:
        entry = self._entry(index)
        text = entry["question"] + (f"\n\n{self._instruction}" if self._instruction else "")
        prompt: Prompt = ({"role": "user", "content": text},) if self._chat else text
        return Problem(prompt, str(entry["answer"]), f"{self.name}/{index}", {"index": index})


def dataset_names() -> list[str]:
    """The names of all data sets.

    Raises:
      MissingExtraError: when reasoning-gym is not installed.
    """
    return sorted(require("reasoning_gym.factory", "tasks").DATASETS)


def is_harmless(text: str) -> bool:
    """Whether text is an expression that a scorer may evaluate.

    Allowed are numbers, single letters, a few functions of one argument (not within each other), signs, brackets,
    commas, and short strings in lists; powers of letters and numbers below 100, of brackets below 10 (two of them).
    So nothing but those functions can be called, no name looked up, and nothing large computed.
    """
    if len(text) > MAX_EXPRESSION:
        return False
    tokens: list[tuple[str, str]] = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            return False
        tokens.append((match.lastgroup, match.group(match.lastgroup)))
        position = match.end()
    return _calls_are_known(tokens) and _powers_are_small(tokens) and _lists_are_not_multiplied(tokens)


def _create(dataset: str, options: dict[str, Any], size: int, seed: int) -> Any:
    gym = require("reasoning_gym", "tasks")
    known = require("reasoning_gym.factory", "tasks").DATASETS
    if dataset not in known:
        raise UserError(f"reasoning-gym has no data set {dataset!r}; {suggest(dataset, known, 'data sets')}")
    _, config = known[dataset]
    types = typing.get_type_hints(config)
    fields = {f.name: types[f.name] for f in dataclasses.fields(config) if f.name not in ("size", "seed")}
    options = convert_options(options, fields, f"the data set {dataset!r}")
    try:
        return gym.create_dataset(dataset, size=size, seed=seed, **options)
    except (AssertionError, ValueError, TypeError) as error:
        reason = str(error) or "its own checks failed"
        raise UserError(
            f"the data set {dataset!r} refuses the options {options} with size={size}: {reason}"
        ) from error


def _calls_are_known(tokens: Sequence[tuple[str, str]]) -> bool:
    """Only known functions precede a bracket, none within another's argument, and nothing precedes a string."""
    within: list[bool] = []
    before = ("", "")
    for kind, value in tokens:
        if kind == "name" and len(value) > 1 and value not in _FUNCTIONS:
            return False
        if kind == "string" and before[0] in ("name", "string", "number"):
            return False
        if kind == "open":
            calls = before[0] == "name" and len(before[1]) > 1
            if before[0] in ("number", "string", "close") or (before[0] == "name" and not calls):
                return False
            if calls and (value != "(" or any(within)):
                return False
            within.append(calls)
        elif kind == "close" and within:
            within.pop()
        before = (kind, value)
    return True


def _powers_are_small(tokens: Sequence[tuple[str, str]]) -> bool:
    kinds = [kind for kind, _ in tokens]
    of_brackets = 0
    for k in (k for k, kind in enumerate(kinds) if kind == "power"):
        exponent = tokens[k + 1] if k + 1 < len(tokens) else ("", "")
        bracket = k > 0 and kinds[k - 1] == "close"
        of_brackets += bracket
        if exponent[0] != "number" or not exponent[1].isdecimal() or len(exponent[1]) > (1 if bracket else 2):
            return False
        if kinds[k + 2 : k + 3] == ["power"]:
            return False
    return of_brackets <= 2


def _lists_are_not_multiplied(tokens: Sequence[tuple[str, str]]) -> bool:
    """No repetition of a list or string."""
    for (left, left_value), (right, right_value) in zip(tokens, tokens[1:], strict=False):
        if left_value == "*" and (right == "string" or right_value == "["):
            return False
        if right_value == "*" and (left == "string" or left_value == "]"):
            return False
    return True
