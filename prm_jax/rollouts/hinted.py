"""Hints inserted into responses, and the selection of problems that only a hint solves.

START (arXiv 2503.04625): a hint such as "maybe using Python here is a good idea" is inserted into a response, the model
continues, perhaps with a tool, and a problem is kept for training where the hinted response is right and the plain one
wrong. The tokens of hints and tool outputs are marked, so that training can leave them out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.rollouts.environments import EpisodeStart, Feedback, TurnLimits, play


@dataclass(frozen=True)
class Hinted:
    """One problem with and without hints.

    Attributes:
      plain: the response without a hint.
      plain_score: its outcome in [0, 1].
      response: the response with hints and tool outputs; the plain one where that was right already.
      score: its outcome in [0, 1].
      tokens: [n] i32, of `response`.
      sampled: [n] bool, False for tokens of hints and of tool outputs.
      hint: [n] bool, True for tokens of hints.
      rounds: hints that were inserted.
      failure: what the tool failed with, empty for none.
    """

    plain: str
    plain_score: float
    response: str
    score: float
    tokens: np.ndarray
    sampled: np.ndarray
    hint: np.ndarray
    rounds: int
    failure: str = ""

    @property
    def kept(self) -> bool:
        """Whether the problem belongs to the selection: right with the hint, wrong without."""
        return self.score == 1.0 and self.plain_score < 1.0


def respond_with_hints(
    engine: Any,
    prompts: Sequence[Sequence[int]],
    verify: Callable[[Sequence[int], Sequence[str]], Sequence[float]],
    *,
    tokenizer: Any,
    hint: str,
    limits: TurnLimits,
    at: Sequence[str] = (),
    rounds: int = 1,
    step: Callable[[str], Feedback] = lambda action: Feedback(done=True),
    first_prompt: int = 0,
) -> list[Hinted]:
    """Samples plain responses, then continues the wrong ones after a hint.

    Args:
      engine: idle, with prefixes and ``extend``, such as a `SlotEngine` that holds stop set 0.
      prompts: token ids of each problem.
      verify: ``(numbers of problems, responses) -> scores`` in [0, 1].
      tokenizer: of the model.
      hint: text that is inserted.
      limits: of the plain response, and of what follows each hint.
      at: the hint follows the first of these strings; where none occurs, it is put at the end of the response. The
        empty string is the beginning of the response.
      rounds: hints, one after the other, while the answer is wrong.
      step: the tool: answers to a turn, ``done`` where it calls nothing.
      first_prompt: ``prompt_id`` of the first prompt.

    Raises:
      UserError: an empty hint.
    """
    hint_ids = list(tokenizer.encode(hint)) if hint else []
    if not hint_ids:
        raise UserError("a hint must have at least one token (--hint.text)")
    plain_starts = [EpisodeStart(tuple(prompt), first_prompt + i, 0, step) for i, prompt in enumerate(prompts)]
    episodes = play(engine, plain_starts, tokenizer=tokenizer, limits=limits)
    tokens = [_without_end(tokenizer, episode.tokens) for episode in episodes]
    sampled = [np.asarray(episode.sampled[: len(ids)], bool) for episode, ids in zip(episodes, tokens, strict=True)]
    inserted = [np.zeros(len(ids), bool) for ids in tokens]
    texts = [tokenizer.decode([int(token) for token in ids], skip_special=True) for ids in tokens]
    plain = list(texts)
    scores = list(verify(range(len(prompts)), texts))
    first_scores, used, failures = list(scores), [0] * len(prompts), [""] * len(prompts)
    for number in range(rounds):
        wrong = [i for i, score in enumerate(scores) if score < 1.0]
        starts, before = [], []
        for i in wrong:
            kept = _place(tokenizer, tokens[i], at if number == 0 else ())
            prefix = [*(int(token) for token in tokens[i][:kept]), *hint_ids]
            most = len(prefix) + limits.max_new_tokens
            starts.append(EpisodeStart(tuple(prompts[i]), first_prompt + i, number + 1, step, tuple(prefix), most))
            before.append((i, np.append(sampled[i][:kept], [False] * len(hint_ids))))
            inserted[i] = np.append(inserted[i][:kept], [True] * len(hint_ids))
        for (i, given), episode in zip(before, play(engine, starts, tokenizer=tokenizer, limits=limits), strict=True):
            ids = _without_end(tokenizer, episode.tokens)
            mask = np.asarray(episode.sampled[: len(ids)], bool).copy()
            mask[: len(given)] = given[: len(ids)]
            inserted[i] = np.pad(inserted[i], (0, max(len(ids) - len(given), 0)))[: len(ids)]
            tokens[i], sampled[i], used[i], failures[i] = ids, mask, number + 1, episode.failure
            texts[i] = tokenizer.decode([int(token) for token in ids], skip_special=True)
        again = [i for i, _ in before]
        for i, score in zip(again, verify(again, [texts[i] for i in again]), strict=True):
            scores[i] = 0.0 if failures[i] else score
    return [
        Hinted(plain[i], first_scores[i], texts[i], scores[i], tokens[i], sampled[i], inserted[i], used[i], failures[i])
        for i in range(len(prompts))
    ]


def _place(tokenizer: Any, tokens: np.ndarray, at: Sequence[str]) -> int:
    """Number of tokens before the hint: up to the first of the strings, or all."""
    if not at:
        return len(tokens)
    for count in range(len(tokens) + 1):
        text = tokenizer.decode([int(t) for t in tokens[:count]], skip_special=True)
        if any(word in text for word in at):
            return count
    return len(tokens)


def _without_end(tokenizer: Any, tokens: np.ndarray) -> np.ndarray:
    ends = set(getattr(tokenizer, "eos_ids", ()))
    return tokens[:-1] if len(tokens) and int(tokens[-1]) in ends else tokens
