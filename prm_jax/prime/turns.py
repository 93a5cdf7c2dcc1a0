"""Responses in turns during training: which environment or tool answers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from prm_jax.data.problems import Problem, Task
from prm_jax.errors import UserError
from prm_jax.rollouts.environments import Episode, EpisodeStart, Feedback, TurnLimits, play
from prm_jax.rollouts.turn_options import TurnOptions
from prm_jax.verifiers.tools import make_tool

Step = Callable[[str], Feedback]


@dataclasses.dataclass
class Turns:
    """What answers to the actions of a policy.

    Attributes:
      start: gives the ``step`` function of a problem's episode.
      stop: strings that end an action.
      limits: of an episode.
      lost: responses whose environment failed since the last call of `metrics`.
      played, actions: responses and their actions since then.
    """

    start: Callable[[Problem], Step]
    stop: tuple[str, ...]
    limits: TurnLimits
    lost: int = 0
    played: int = 0
    actions: int = 0

    def draw(self, engine: Any, tokenizer: Any, starts: Sequence[EpisodeStart]) -> list[Episode]:
        """Plays episodes and counts them."""
        episodes = play(engine, starts, tokenizer=tokenizer, limits=self.limits)
        self.played += len(episodes)
        self.lost += sum(episode.end == "failed" for episode in episodes)
        self.actions += sum(len(episode.turns) for episode in episodes)
        return episodes

    def metrics(self) -> dict[str, float]:
        """Actions per response, and the share of responses that their environment lost, since the last call."""
        played = max(self.played, 1)
        found = {"rollout/actions": self.actions / played, "rollout/lost_episodes": self.lost / played}
        self.lost = self.played = self.actions = 0
        return found


def make_turns(options: TurnOptions, task: Task, max_new_tokens: int) -> Turns | None:
    """What answers in a run: the task's environments, or a tool; None for plain responses.

    Args:
      options: see `TurnOptions`.
      task: with a method ``environment(problem)`` where its problems are episodes.
      max_new_tokens: of a response with all answers.

    Raises:
      UserError: a tool for a task that has environments; markers that are not two or four strings.
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
    return None if tool is None else Turns(lambda problem: tool.step, (*task.stop, tool.markers.close), limits)
