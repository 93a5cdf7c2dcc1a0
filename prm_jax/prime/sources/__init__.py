"""Sources of process rewards by name: the online implicit PRM, saved PRMs, checkers, values, critics, the policy."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from prm_jax.errors import UserError
from prm_jax.prime.checked import call_named
from prm_jax.prime.critic import Critic
from prm_jax.prime.options import Options
from prm_jax.prime.sizes import replay_places
from prm_jax.prime.sources.base import Judged, Observed, RewardSource, Source, SourceBatch, judge, on_host
from prm_jax.prime.sources.checker import StepChecker, checker_rewards
from prm_jax.prime.sources.critic import CriticSource
from prm_jax.prime.sources.implicit import ImplicitPRM, PRMState
from prm_jax.prime.sources.policy import PolicyAsPRM
from prm_jax.prime.sources.saved import SavedPRM
from prm_jax.prime.sources.values import PrefixValues
from prm_jax.resolve import check_signature, resolve

if TYPE_CHECKING:
    from prm_jax.prime.start import Start

__all__ = [
    "CriticSource",
    "ImplicitPRM",
    "Judged",
    "Observed",
    "PRMState",
    "PolicyAsPRM",
    "PrefixValues",
    "RewardSource",
    "SavedPRM",
    "Source",
    "SourceBatch",
    "StepChecker",
    "check_source",
    "checker_rewards",
    "judge",
    "make_source",
]


def make_source(options: Options, start: "Start") -> Any:
    """The source that `options.reward.source` names, or None in outcome-only training.

    Args:
      options: of the run.
      start: task, models, the placed parameters (`Start.base`, `Start.prm_base`), learners and `ways`.

    Raises:
      UserError: an unknown name (the nearest is suggested), or a maker whose result is not a source.
    """
    if options.advantage.process_coef == 0:
        return None
    name = options.reward.source
    if name in SOURCES:
        return SOURCES[name](options, start)
    maker = resolve(name, dict(SOURCES), "reward source", option="reward.source")
    check_signature(maker, ("options", "start"), f"reward source {name}")
    return check_source(call_named(maker, (options, start), f"the reward source {name}", "made"), name)


def check_source(source: Any, name: str) -> Any:
    """Returns `source` if it has what a source needs.

    Raises:
      UserError: a missing method or attribute, named.
    """
    if isinstance(source, type):
        raise UserError(f"the reward source {name} is the class {source.__name__}; pass an object of it")
    missing = [method for method in ("init", "score", "update") if not callable(getattr(source, method, None))]
    missing += [] if hasattr(source, "learns") else ["learns"]
    if missing:
        raise UserError(
            f"the reward source {name} is a {type(source).__name__} without {', '.join(missing)}; expected "
            "init(key), score(state, batch), update(state, batch) and learns (see prm_jax.prime.Source)"
        )
    if on_host(source) and not callable(getattr(source, "observe", None)):
        raise UserError(
            f"the reward source {name} sets on_host without a method observe(responses, sampler, params, key) that "
            "returns prime.Observed"
        )
    return source


def _implicit(options: Options, start: "Start") -> ImplicitPRM:
    learner = start.prm_learner(options)
    _, kept = replay_places(options)
    columns = options.rollout.max_prompt_tokens + options.rollout.max_new_tokens
    return ImplicitPRM(
        learner, start.prm_base, options.prm, policy_config=start.config, ways=start.ways, columns=columns, kept=kept,
        trained=start.prm_trained,
    )


def _saved(options: Options, start: "Start") -> SavedPRM:
    reward = options.reward
    mesh = start.mesh if jax.process_count() == 1 else None  # of several processes, each scores its share by itself
    return start.once(
        "saved PRM",
        lambda: SavedPRM(
            reward.path, pessimism=reward.pessimism, reference=reward.reference or None, best_of=reward.best_of,
            mesh=mesh,
        ),  # fmt: skip
    )


def _values(options: Options, start: "Start") -> PrefixValues:
    reward, prover = options.reward, None
    if len(reward.path) > 1:
        raise UserError(f"--reward.path names {len(reward.path)} provers; --reward.source values takes one")
    if reward.path:
        prover = start.once("prover", lambda: start.load_prover(options, reward.path[0]))
    return PrefixValues(
        rollouts=reward.rollouts, temperature=options.rollout.temperature, top_k=options.rollout.top_k,
        top_p=options.rollout.top_p, batch_size=options.eval.batch_size, prover=prover, best_of=reward.best_of,
    )  # fmt: skip


def _critic(options: Options, start: "Start") -> CriticSource:
    critic = Critic(start.critic_learner(options, warm_up=True), options.critic, options.policy, start.ways)
    return CriticSource(critic, start.base)


def _policy(options: Options, start: "Start") -> PolicyAsPRM:
    return PolicyAsPRM(start.config, beta=options.reward.beta, pieces=options.policy, ways=start.ways)


SOURCES: dict[str, Callable[[Options, "Start"], Any]] = {
    "implicit": _implicit,
    "model": _saved,
    "checker": lambda options, start: StepChecker(start.task, flip=options.reward.flip),
    "values": _values,
    "critic": _critic,
    "policy": _policy,
}
"""Built-in name -> (options, start) -> source."""
