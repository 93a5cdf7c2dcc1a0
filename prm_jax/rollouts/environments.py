"""Responses in turns: a model acts, an environment answers, and the model continues.

What the environment says becomes tokens of the response that the model did not draw: they are part of the context, and
not of any loss or statistic of the model's tokens.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from prm_jax.errors import UserError
from prm_jax.rollouts.engine import Request, Response, Ticket

EpisodeEnd = Literal["done", "eos", "length", "turns", "failed"]


@dataclass(frozen=True)
class Feedback:
    """What an environment answers to an action.

    Attributes:
      text: becomes part of the response; may be empty when the episode is over.
      reward: for this action.
      done: the episode is over.
    """

    text: str = ""
    reward: float = 0.0
    done: bool = False


@runtime_checkable
class Environment(Protocol):
    """One episode at a time. Equal seeds and actions must give equal answers, so that an episode can be checked."""

    def reset(self, seed: int) -> str:
        """Begins an episode; returns what the model is told first."""
        ...

    def step(self, action: str) -> Feedback:
        """Answers to what the model wrote in this turn, with the string that ended it."""
        ...


@dataclass(frozen=True)
class EpisodeStart:
    """An episode to play.

    Attributes:
      prompt: token ids, of what the environment said first and whatever surrounds it.
      prompt_id, sample: as in `Request`.
      step: answers to an action; ``Environment.step`` of an environment that has been reset.
      prefix: tokens of the response that are there already; they belong to the first action.
      max_new_tokens: of the whole response, prefix included; 0: that of the limits.
    """

    prompt: tuple[int, ...]
    prompt_id: int
    sample: int
    step: Callable[[str], Feedback]
    prefix: tuple[int, ...] = ()
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Turn:
    """One action and its answer."""

    action: str
    feedback: Feedback


@dataclass(frozen=True)
class Episode:
    """A response in turns of n tokens.

    Attributes:
      tokens: [n] i32, actions and answers.
      sampled: [n] bool, False for tokens of answers.
      logp: [n] f32, of the sampling distribution before truncation; 0 for tokens of answers; None when unknown.
      version: [n] i32, version of the weights.
      turn_ids: [n] i32, the turn of each token; an answer belongs to the turn of its action.
      turns: actions and answers as text.
      end: "done": the environment ended it; "eos": the model did; "length", "turns": a limit; "failed": the environment
        raised or took too long, so that nothing can be learned from it.
      failure: what went wrong, empty unless "failed".
    """

    tokens: np.ndarray
    sampled: np.ndarray
    logp: np.ndarray | None
    version: np.ndarray
    turn_ids: np.ndarray
    turns: tuple[Turn, ...]
    end: EpisodeEnd
    failure: str = ""

    @property
    def reward(self) -> float:
        """Sum of the rewards of its turns."""
        return float(sum(turn.feedback.reward for turn in self.turns))


@dataclass(frozen=True)
class TurnLimits:
    """Limits of an episode.

    Attributes:
      max_new_tokens: of all turns and answers together.
      max_turns: actions.
      max_answer_tokens: longer answers are cut.
      seconds: that the environment may take for one answer.
    """

    max_new_tokens: int
    max_turns: int = 8
    max_answer_tokens: int = 256
    seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_turns", "max_answer_tokens", "seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} of an episode must be positive, found {getattr(self, name)}")


@dataclass
class _Playing:
    """An episode in progress."""

    start: EpisodeStart
    turns: list[Turn] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)
    answered: int = 0


class _Call:
    """A call of an environment in a thread of its own, which cannot be stopped but can be left behind."""

    def __init__(self, step: Callable[[str], Feedback], action: str, finished: threading.Condition) -> None:
        self.feedback: Feedback | None = None
        self.failure = ""
        self._done = False
        thread = threading.Thread(target=self._run, args=(step, action, finished), daemon=True)
        thread.start()

    def _run(self, step: Callable[[str], Feedback], action: str, finished: threading.Condition) -> None:
        try:
            found = step(action)
            if isinstance(found, Feedback):
                self.feedback = found
            else:
                self.failure = f"the environment returned {type(found).__name__}, expected Feedback"
        except Exception as error:
            self.failure = f"the environment raised {type(error).__name__}: {error}"
        with finished:
            self._done = True
            finished.notify_all()

    @property
    def done(self) -> bool:
        return self._done

    def result(self, seconds: float) -> tuple[Feedback | None, str]:
        """(the answer, ""), or (None, what went wrong within so many seconds)."""
        if self.feedback is not None:
            return self.feedback, ""
        return None, self.failure or f"the environment gave no answer within {seconds:g} s"


def answer_to(step: Callable[[str], Feedback], action: str, *, seconds: float) -> tuple[Feedback | None, str]:
    """What an environment answers to an action, or why it does not.

    Args:
      step: the environment.
      action: what the model wrote.
      seconds: after which an environment that has not answered is left behind.

    Returns:
      (the answer, ""), or (None, what went wrong).
    """
    finished = threading.Condition()
    call = _Call(step, action, finished)
    with finished:
        finished.wait_for(lambda: call.done, timeout=seconds)
    return call.result(seconds)


def play(
    engine: Any, starts: Sequence[EpisodeStart], *, tokenizer: Any, limits: TurnLimits, stop: int = 0
) -> list[Episode]:
    """Plays episodes side by side; while an environment answers one, the engine decodes others.

    An environment that raises or hangs loses its own episode only.

    Args:
      engine: with ``extend``, such as a `SlotEngine` whose ``SlotTuning.hold`` contains `stop`.
      starts: the episodes.
      tokenizer: encodes answers and decodes actions.
      limits: of each episode.
      stop: the stop set whose strings end an action.

    Returns:
      The episodes, in order.

    Raises:
      UserError: the engine cannot continue responses.
    """
    player = EpisodePlayer(engine, tokenizer=tokenizer, limits=limits, stop=stop)
    return player.wait_for(player.submit(starts))


class EpisodePlayer:
    """Plays episodes that are submitted at any time, as an `Engine` samples responses.

    Args:
      engine, tokenizer, limits, stop: see `play`.
      on_end: called with each episode that has ended.

    Raises:
      UserError: the engine cannot continue responses.
    """

    def __init__(
        self, engine: Any, *, tokenizer: Any, limits: TurnLimits, stop: int = 0,
        on_end: Callable[[Episode], None] = lambda episode: None,
    ) -> None:  # fmt: skip
        if not hasattr(engine, "extend"):
            raise UserError("responses in turns need an engine that can continue them, such as --rollout.engine slots")
        self.engine, self.tokenizer, self.limits, self.stop, self.on_end = engine, tokenizer, limits, stop, on_end
        self.playing: dict[Ticket, _Playing] = {}
        self.waiting: dict[Ticket, tuple[_Call, Response, float]] = {}
        self.finished: list[tuple[Ticket, Episode]] = []
        self.answered = threading.Condition()

    def submit(self, starts: Sequence[EpisodeStart]) -> list[Ticket]:
        """Queues episodes; returns a ticket for each, in order."""
        requests = [
            Request(start.prompt, start.prompt_id, start.sample, self._most(start), self.stop) for start in starts
        ]
        prefixes = [start.prefix for start in starts]
        tickets: list[Ticket] = self.engine.submit(requests, **({"prefixes": prefixes} if any(prefixes) else {}))
        self.playing |= {ticket: _Playing(start) for ticket, start in zip(tickets, starts, strict=True)}
        return tickets

    def poll(self) -> list[tuple[Ticket, Episode]]:
        """Waits until an episode has ended; those that have since the last call, [] when none is played."""
        while self.playing and not self.finished:
            found = self.engine.poll(timeout=0.0 if self.waiting else None)
            if not (found or self.waiting):
                raise RuntimeError(f"the engine lost {len(self.playing)} episodes")
            for ticket, response in found:
                self._act(ticket, response)
            self._take_answers(wait=not found)
        ended, self.finished = self.finished, []
        return ended

    def wait_for(self, tickets: Sequence[Ticket]) -> list[Episode]:
        """These episodes, in order; no others may be played."""
        found: dict[Ticket, Episode] = {}
        while len(found) < len(tickets):
            new = self.poll()
            if not new:
                raise RuntimeError(f"{len(tickets) - len(found)} of {len(tickets)} episodes are not played any more")
            found.update(new)
        return [found[ticket] for ticket in tickets]

    def cancel(self, tickets: Iterable[Ticket]) -> list[tuple[Ticket, Response]]:
        """Ends episodes early; returns what they have so far. An environment that is being asked is left behind."""
        gone = set(tickets) & set(self.playing)
        held = [(ticket, self.waiting.pop(ticket)[1]) for ticket in gone & set(self.waiting)]
        for ticket in gone:
            del self.playing[ticket]
        return held + list(self.engine.cancel(gone))

    def _most(self, start: EpisodeStart) -> int:
        return start.max_new_tokens or self.limits.max_new_tokens

    def _act(self, ticket: Ticket, response: Response) -> None:
        """A turn has ended: asks the environment."""
        playing = self.playing[ticket]
        if response.end in ("length", "cancelled"):
            self._finish(ticket, response, "length")
            return
        action = self.tokenizer.decode([int(token) for token in response.tokens[playing.answered :]], skip_special=True)
        call = _Call(playing.start.step, action, self.answered)
        playing.turns.append(Turn(action, Feedback()))
        self.waiting[ticket] = (call, response, time.monotonic() + self.limits.seconds)

    def _take_answers(self, *, wait: bool) -> None:
        if wait and self.waiting:
            nearest = min(deadline for _, _, deadline in self.waiting.values())
            with self.answered:
                self.answered.wait_for(
                    lambda: any(call.done for call, _, _ in self.waiting.values()),
                    timeout=max(0.0, min(nearest - time.monotonic(), 0.05 if self._decoding() else 1e9)),
                )
        now = time.monotonic()
        for ticket, (call, response, deadline) in list(self.waiting.items()):
            if call.done or now >= deadline:
                del self.waiting[ticket]
                self._answer(ticket, call, response)

    def _decoding(self) -> bool:
        return len(self.waiting) < len(self.playing)

    def _answer(self, ticket: Ticket, call: _Call, response: Response) -> None:
        """Continues an episode after the environment's answer, or ends it."""
        playing = self.playing[ticket]
        feedback, failure = call.result(self.limits.seconds)
        if feedback is None:
            self._finish(ticket, response, "failed", failure)
            return
        playing.turns[-1] = Turn(playing.turns[-1].action, feedback)
        tokens = list(self.tokenizer.encode(feedback.text))[: self.limits.max_answer_tokens] if feedback.text else []
        room = self._most(playing.start) - len(response.tokens) - len(tokens)
        if feedback.done or response.end != "stop" or not tokens:
            self._finish(ticket, response, "done" if feedback.done else "eos" if response.end == "eos" else "done")
        elif len(playing.turns) >= self.limits.max_turns:
            self._finish(ticket, response, "turns")
        elif room < 1:
            self._finish(ticket, response, "length")
        else:
            playing.answered = len(response.tokens) + len(tokens)
            playing.turn_ends.append(playing.answered)
            self.engine.extend(ticket, tokens, max_new_tokens=self._most(playing.start))

    def _finish(self, ticket: Ticket, response: Response, end: EpisodeEnd, failure: str = "") -> None:
        if response.end == "stop":
            self.engine.cancel([ticket])  # gives up its slot
        playing, count = self.playing.pop(ticket), len(response.tokens)
        sampled = getattr(response, "sampled", None)
        ends = np.asarray(playing.turn_ends, np.int64)
        episode = Episode(
            response.tokens,
            np.ones(count, bool) if sampled is None else sampled,
            response.logp,
            response.version,
            np.searchsorted(ends, np.arange(count), side="right").astype(np.int32),
            tuple(playing.turns),
            end,
            failure,
        )
        self.finished.append((ticket, episode))
        self.on_end(episode)
