"""A problem, its stable hash, and the split into training and evaluation problems by that hash."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from prm_jax.data.steps import StepSplitter
from prm_jax.verifiers.verdict import Verdict

Prompt: TypeAlias = str | tuple[Mapping[str, str], ...] | tuple[int, ...]
"""Plain text, chat messages (``{"role": ..., "content": ...}``), or token ids."""

EVAL_FRACTION = 0.25
"""The share of all possible problems that procedural tasks keep for evaluation."""


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One prompt with its reference answer.

    Attributes:
      prompt: text, a tuple of chat messages, or a tuple of token ids.
      answer: the reference answer as text, in the form that the task's verifier reads.
      id: unique within its task; what logs and samples call the problem.
      metadata: what else the task needs to check a response, as plain JSON values; ``"solution"`` holds a worked
        solution.
    """

    prompt: Prompt
    answer: str
    id: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((problem_hash(self.prompt), self.answer, self.id))


@runtime_checkable
class Task(Protocol):
    """What runs need from a task; ``make_task`` makes one from problems and a reward function.

    Optional: ``demonstrations(rng, count)`` gives (prompt, response) pairs for supervised training, or triples with the
    spans of characters of the response that are read and not learned,
    ``notes`` a list of remarks that runs print, ``verifier`` what ``describe_task`` describes.

    Attributes:
      name: what the task is called in logs.
      train, eval: the problems; disjoint by ``problem_hash``.
      splitter: cuts a response into steps.
      stop: strings that end a response.
      fingerprint: a hex digest of everything that determines the problems; checkpoints compare it.
    """

    @property
    def name(self) -> str: ...

    @property
    def splitter(self) -> StepSplitter: ...

    @property
    def stop(self) -> tuple[str, ...]: ...

    @property
    def train(self) -> Sequence[Problem]: ...

    @property
    def eval(self) -> Sequence[Problem]: ...

    @property
    def fingerprint(self) -> str: ...

    def verify(self, problem: Problem, response: str) -> float:
        """The outcome reward of one response, in [0, 1]."""
        ...

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response; what training calls, since a verdict distinguishes errors from failures."""
        ...

    def step_labels(self, problem: Problem, response: str) -> list[bool] | None:
        """Whether each step of ``splitter(response)`` is right; None where the task does not know."""
        ...

    def tokenizer(self) -> Any | None:
        """The tokenizer of a model trained from scratch on this task; None when the model brings one."""
        ...


def problem_hash(prompt: Prompt | Problem) -> int:
    """A 64-bit hash of a prompt that is the same in every process, on every machine, in every version.

    Runs of white space count as one space, and leading and trailing white space is ignored, so copies of a prompt that
    differ only in layout have the same hash.

    Args:
      prompt: a prompt, or a problem whose prompt is meant (its answer and id do not count).

    Returns:
      An integer in [0, 2**64).
    """
    if isinstance(prompt, Problem):
        prompt = prompt.prompt
    digest = hashlib.blake2b(_canonical(prompt), digest_size=8, person=b"prm_jax.problem")
    return int.from_bytes(digest.digest(), "little")


def is_eval(prompt: Prompt | Problem, fraction: float = EVAL_FRACTION) -> bool:
    """Whether a prompt belongs to evaluation: a property of its text alone, not of a seed or of other prompts.

    Args:
      prompt: a prompt or problem.
      fraction: in [0, 1], the share of prompts that belong to evaluation.
    """
    return problem_hash(prompt) < fraction * 2.0**64


def split_problems(problems: Iterable[Problem], fraction: float = EVAL_FRACTION) -> tuple[list[Problem], list[Problem]]:
    """Splits problems into (train, eval) by the hash of their prompts, so copies of a prompt stay together."""
    train: list[Problem] = []
    held_out: list[Problem] = []
    for problem in problems:
        (held_out if is_eval(problem, fraction) else train).append(problem)
    return train, held_out


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Prompts that occur more than once, by the ids of their problems.

    Attributes:
      duplicates: groups of ids within one list of problems that share a prompt.
      leaks: pairs (train id, eval id) that share a prompt.
    """

    duplicates: tuple[tuple[str, ...], ...]
    leaks: tuple[tuple[str, str], ...]


def find_overlap(train: Iterable[Problem], held_out: Iterable[Problem] = ()) -> Overlap:
    """Finds prompts that occur twice, within either list or across the two."""
    by_list: list[dict[int, list[str]]] = []
    for problems in (train, held_out):
        ids: dict[int, list[str]] = {}
        for problem in problems:
            ids.setdefault(problem_hash(problem), []).append(problem.id)
        by_list.append(ids)
    duplicates = [tuple(same) for ids in by_list for same in ids.values() if len(same) > 1]
    leaks = [(by_list[0][key][0], same[0]) for key, same in by_list[1].items() if key in by_list[0]]
    return Overlap(tuple(duplicates), tuple(leaks))


def fingerprint(*parts: Any) -> str:
    """A hex digest of problems and plain JSON values, in order.

    A part with a ``fingerprint`` of its own contributes that; a sequence of problems contributes every prompt and
    answer, to the character; anything else must be JSON.
    """
    digest = hashlib.sha256()
    for part in parts:
        own = getattr(part, "fingerprint", None)
        if isinstance(own, str):
            digest.update(b"f" + own.encode())
        elif isinstance(part, Sequence) and part and isinstance(part[0], Problem):
            for problem in part:
                exact = json.dumps([problem.prompt, problem.answer], default=dict, sort_keys=True)
                digest.update(b"p" + exact.encode() + b"\0")
        else:
            digest.update(b"j" + json.dumps(part, sort_keys=True).encode() + b"\0")
    return digest.hexdigest()[:32]


def _canonical(prompt: Prompt) -> bytes:
    if isinstance(prompt, str):
        return b"t" + _squeeze(prompt).encode("utf-8", "surrogatepass")
    if prompt and isinstance(prompt[0], Mapping):
        messages = [
            {key: _squeeze(str(value)) for key, value in message.items()}
            for message in prompt
            if isinstance(message, Mapping)
        ]
        return b"m" + json.dumps(messages, sort_keys=True).encode()
    return b"i" + ",".join(str(token) for token in prompt).encode()


def _squeeze(text: str) -> str:
    return " ".join(text.split())
