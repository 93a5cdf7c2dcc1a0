"""What a source of process rewards is, and how a training step uses one.

A source gives every response token a reward. It may learn from the batch that it judges (an online PRM), be frozen (a
saved PRM), or compute its rewards on the host (a checker, Monte-Carlo values).
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.errors import UserError
from prm_jax.prime.batch import Batch, Metrics
from prm_jax.prime.checked import call_named, per_token
from prm_jax.runs.learner import Params

if TYPE_CHECKING:
    from prm_jax.prime.responses import Responses
    from prm_jax.prime.sampler import Sampler


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SourceBatch:
    """What a source may read inside the compiled step.

    Attributes:
      rows: the rollouts.
      policy: the sampling policy's whole parameters.
      reference: the policy's initial parameters.
      constants: the source's own frozen arrays, ``source.constants`` on the device.
    """

    rows: Batch
    policy: Params
    reference: Params
    constants: Any = ()

    @property
    def tokens(self) -> jax.Array:
        """[B, T] int32."""
        return self.rows.tokens

    @property
    def mask(self) -> jax.Array:
        """[B, T] bool, response tokens."""
        return self.rows.mask

    @property
    def step_ids(self) -> jax.Array:
        """[B, T] int32, -1 outside the response."""
        return self.rows.step_ids

    @property
    def outcome(self) -> jax.Array:
        """[B] float32."""
        return self.rows.outcome

    @property
    def group_ids(self) -> jax.Array:
        """[B] int32."""
        return self.rows.group_ids

    @property
    def judged(self) -> jax.Array:
        """[B] bool, rows whose outcome is known."""
        return self.rows.keep if self.rows.judged is None else self.rows.judged

    @property
    def process(self) -> jax.Array:
        """[B, T] rewards that the source computed on the host; 0 where there are none."""
        if self.rows.process is None:
            return jnp.zeros(self.rows.mask.shape, jnp.float32)
        return self.rows.process


class RewardSource(Protocol):
    """A source of process rewards.

    Attributes:
      learns: whether `update` changes the state.
    """

    @property
    def learns(self) -> bool: ...

    def init(self, key: jax.Array) -> Any:
        """The state at the start: a pytree of arrays, () for none. `key` is consumed."""
        ...

    def score(self, state: Any, batch: SourceBatch) -> jax.Array:
        """Process rewards [B, T] float32; traced into the training step. Values outside the mask are ignored."""
        ...

    def update(self, state: Any, batch: SourceBatch) -> tuple[Any, Metrics]:
        """(new state, metrics) after learning from the batch; traced. Not called when `learns` is False."""
        ...


class Source:
    """Base class with the defaults of a source that does not learn and needs nothing; override what differs.

    Attributes:
      learns: whether `update` changes the state.
      constants: pytree of frozen arrays that the step passes in as ``batch.constants``; arrays that a method closes
        over instead would be compiled into the step as literals.
      on_host: whether `observe` must be called for every batch.
    """

    learns: bool = False
    constants: Any = ()
    on_host: bool = False

    def init(self, key: jax.Array) -> Any:
        """No state."""
        del key
        return ()

    def score(self, state: Any, batch: SourceBatch) -> jax.Array:
        """The rewards that `observe` computed."""
        del state
        return batch.process

    def update(self, state: Any, batch: SourceBatch) -> tuple[Any, Metrics]:
        """Learns nothing."""
        del batch
        return state, {}

    def observe(self, responses: "Responses", sampler: "Sampler", params: Params, key: jax.Array) -> "Observed":
        """Computes rewards on the host, once per batch, where `on_host` is set.

        Args:
          responses: the judged responses of the batch.
          sampler: samples and verifies further responses, for values by rollouts.
          params: the policy's whole parameters.
          key: typed PRNG key of this step, consumed.
        """
        raise TypeError(f"{type(self).__name__} computes nothing on the host")


class Observed(NamedTuple):
    """What a source computed on the host.

    Attributes:
      process: [B, T] float32.
      initial_value: [B] float32 value of each row's prompt, or None.
      sampled: responses that were sampled for it; they count towards the run's rollouts.
    """

    process: np.ndarray
    initial_value: np.ndarray | None = None
    sampled: int = 0


class Judged(NamedTuple):
    """One batch, judged by a source.

    Attributes:
      state: the source's new state.
      rewards: [B, T] float32, no gradient.
      response: [B] float32, the score of each response before the source learned from it.
      metrics: of the update.
      initial_value: [B] float32, or None.
    """

    state: Any
    rewards: jax.Array
    response: jax.Array
    metrics: Metrics
    initial_value: jax.Array | None = None


def on_host(source: Any) -> bool:
    """Whether `observe` of a source must be called for every batch."""
    return bool(getattr(source, "on_host", False))


def constants_of(source: Any) -> Any:
    """The frozen arrays of a source, () for none."""
    return getattr(source, "constants", ())


def judge(source: Any, state: Any, batch: SourceBatch) -> Judged:
    """Scores a batch and lets the source learn from it.

    A source may have a method ``judge(state, batch) -> Judged`` of its own, which can share a forward pass between the
    two; otherwise the rewards are those before the update.
    """
    own, name = getattr(source, "judge", None), f"the reward source {type(source).__name__}"
    if own is not None:
        judged = call_named(own, (state, batch), f"{name}: judge")
        if not isinstance(judged, Judged):
            raise UserError(f"{name}: judge returned a {type(judged).__name__}; expected prime.Judged")
        return judged
    scores = call_named(source.score, (state, batch), f"{name}: score")
    scores = per_token(scores, batch.mask.shape, f"{name}: score")
    rewards = jax.lax.stop_gradient(jnp.where(batch.mask, scores, 0.0))
    metrics: Metrics = {}
    if source.learns:
        result = call_named(source.update, (state, batch), f"{name}: update")
        state, metrics = _checked_update(result, state, f"{name}: update")
    return Judged(state, rewards, rewards.sum(-1), metrics, batch.rows.initial_value)


def _checked_update(result: Any, state: Any, what: str) -> tuple[Any, Metrics]:
    """(state, metrics) of an update whose new state has the structure, shapes and dtypes of the old one."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise UserError(f"{what} returned a {type(result).__name__}; expected (new state, metrics by name)")
    new, metrics = _arrays(result[0], what), result[1]
    expected, found = (
        {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (state, new)
    )
    if expected != found:
        lost = [f"{name} {kind}" for name, kind in expected.items() if found.get(name) != kind]
        made = [f"{name} {kind}" for name, kind in found.items() if expected.get(name) != kind]
        raise UserError(
            f"{what} returned a state of another structure than it got: found {', '.join(made) or 'nothing'} in place "
            f"of {', '.join(lost) or 'nothing'}"
        )
    for name, value in metrics.items():
        if jnp.shape(value):
            raise UserError(f"{what}: the metric {name!r} has shape {list(jnp.shape(value))}; expected a scalar")
    return new, dict(metrics)


def initial_state(source: Any, key: jax.Array) -> Any:
    """The state of a source at the start, as arrays. `key` is consumed.

    Raises:
      UserError: `init` fails, or returns something other than a pytree of arrays and numbers.
    """
    what = f"the reward source {type(source).__name__}: init"
    return _arrays(call_named(source.init, (key,), what), what)


def _arrays(state: Any, what: str) -> Any:
    """A state whose leaves are arrays; numbers become some."""
    try:
        return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x, jnp.result_type(x)), state)
    except (TypeError, ValueError) as error:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in jax.tree.leaves(state)}))
        raise UserError(f"{what} returned a state of {kinds}; expected a pytree of arrays and numbers") from error


def observe(source: Any, responses: "Responses", sampler: "Sampler", params: Params, key: jax.Array) -> "Observed":
    """What a source computes on the host, checked.

    Raises:
      UserError: it is not an `Observed`, or an array has another shape than it must.
    """
    what = f"the reward source {type(source).__name__}: observe"
    found = source.observe(responses, sampler, params, key)
    if not isinstance(found, Observed):
        raise UserError(f"{what} returned a {type(found).__name__}; expected prime.Observed(process [B, T])")
    process = per_token(np.asarray(found.process), responses.mask.shape, what)
    value = found.initial_value
    if value is not None and np.shape(value) != responses.outcome.shape:
        raise UserError(
            f"{what}: initial_value has shape {list(np.shape(value))}; expected [B] = {list(responses.outcome.shape)}"
        )
    return Observed(process, None if value is None else np.asarray(value, np.float32), int(found.sampled))
