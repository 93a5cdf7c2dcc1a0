"""Responses in turns during training: which environment or tool answers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from prm_jax.data.problems import Problem, Task
from prm_jax.errors import UserError
from prm_jax.rollouts.engine import Request
from prm_jax.rollouts.environments import Episode, EpisodePlayer, EpisodeStart, Feedback, TurnLimits
from prm_jax.rollouts.turn_options import TurnOptions
from prm_jax.runs import processes
from prm_jax.verifiers.tools import check_tool, make_tool

Step = Callable[[str], Feedback]


@dataclasses.dataclass
class Turns:
    """What answers to the actions of a policy.

    Attributes:
      start: gives the ``step`` function of a problem's episode.
      stop: strings that end an action.
      limits: of an episode.
      lost: responses of this process whose environment failed since the last call of `reset`.
      played, actions: its responses and their actions since then.
    """

    start: Callable[[Problem], Step]
    stop: tuple[str, ...]
    limits: TurnLimits
    lost: int = 0
    played: int = 0
    actions: int = 0

    def player(self, engine: Any, tokenizer: Any) -> EpisodePlayer:
        """Plays episodes on an engine that holds responses; they are counted."""
        return EpisodePlayer(engine, tokenizer=tokenizer, limits=self.limits, on_end=self._count)

    def begin(self, request: Request, problem: Problem) -> EpisodeStart:
        """The episode of a request."""
        return EpisodeStart(request.prompt, request.prompt_id, request.sample, self.start(problem))

    def reset(self) -> None:
        """Forgets what has been counted."""
        self.lost = self.played = self.actions = 0

    def metrics(self) -> dict[str, float]:
        """Actions per response, and the share of responses that their environment lost, since `reset`; collective."""
        own = [self.played, self.actions, self.lost]
        played, actions, lost = np.sum(processes.gather(own, name="episodes"), axis=0).tolist()
        return {"rollout/actions": actions / max(played, 1), "rollout/lost_episodes": lost / max(played, 1)}

    def _count(self, episode: Episode) -> None:
        self.played += 1
        self.lost += episode.end == "failed"
        self.actions += len(episode.turns)


def make_turns(options: TurnOptions, task: Task, tokenizer: Any, max_new_tokens: int) -> Turns | None:
    """What answers in a run: the task's environments, or a tool; None for plain responses.

    Args:
      options: see `TurnOptions`.
      task: with a method ``environment(problem)`` where its problems are episodes.
      tokenizer: of the policy.
      max_new_tokens: of a response with all answers.

    Raises:
      UserError: a tool for a task that has environments; markers that are not two or four strings, or
        that the policy cannot write; no sandbox for programs.
    """
    limits = TurnLimits(max_new_tokens, options.max_turns, options.max_answer_tokens, options.seconds)
    environment = getattr(task, "environment", None)
    if environment is not None:
        if options.tool != "none":
            raise UserError(
                f"the task {task.name!r} has environments that answer the policy: leave --rollout.turns.tool out"
            )
        return Turns(lambda problem: environment(problem).step, task.stop, limits)
    tool = make_tool(options.tool, options.markers, option="--rollout.turns.markers")
    check_tool(tool, tokenizer, option="--rollout.turns.markers")
    return None if tool is None else Turns(lambda problem: tool.step, (*task.stop, tool.markers.close), limits)
