"""Engines and policies from a model's name, as commands and experiments need them."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from prm_jax.errors import UserError
from prm_jax.rollouts.dialects import detect
from prm_jax.rollouts.engine import Engine, OnProgress
from prm_jax.rollouts.episodes import EpisodePolicy
from prm_jax.rollouts.local import Batching, LocalEngine
from prm_jax.rollouts.policy import STEP, TaskPolicy, stop_sets
from prm_jax.rollouts.remote import RemoteEngine, warn
from prm_jax.rollouts.sampling_options import Connection, SamplingOptions, StepOptions
from prm_jax.rollouts.server_client import ServerClient
from prm_jax.rollouts.text_engine import TextEngine

if TYPE_CHECKING:
    import pathlib

    from jax.sharding import Mesh

_LARGE = 20_000_000
"""Parameters from which on keeping keys and values between calls pays."""


def make_policy(
    engine: Engine,
    task: Any,
    steps: StepOptions,
    *,
    chat: bool = False,
    on_progress: OnProgress = lambda responses, tokens: None,
) -> TaskPolicy:
    """An engine on a task: an `EpisodePolicy` where the task has environments, else a `TaskPolicy`, see there."""
    kind = EpisodePolicy if hasattr(task, "environment") else TaskPolicy
    return kind(engine, task, steps, chat=chat, on_progress=on_progress)


def load_local_policy(
    path: "str | pathlib.Path",
    task: Any,
    steps: StepOptions,
    *,
    seed: int = 0,
    chat: bool = False,
    dtype: str = "float32",
    mesh: "Mesh | None" = None,
    by_steps: bool = True,
    on_progress: OnProgress = lambda responses, tokens: None,
) -> TaskPolicy:
    """A model in this process on a task.

    Args:
      path: Hugging Face directory or GGUF file.
      task: see ``rollouts.tasks``.
      steps: how steps are sampled.
      seed: of the sampling, in [0, 2**32).
      chat: wrap prompts into the chat template.
      dtype: of parameters and arithmetic.
      mesh: devices that share parameters and prompts; None for one device.
      by_steps: whether solutions are sampled step by step, so that later prompts continue earlier responses.
      on_progress: see `TaskPolicy`.

    Raises:
      UserError: the model cannot be read, or an option is out of range.
    """
    import jax

    from prm_jax.models import Tokenizer, load_weights
    from prm_jax.models.sharding import rows_over
    from prm_jax.rollouts.slots import SlotEngine

    _check(steps, seed)
    if steps.engine == "slots" and steps.reuse_mib:
        raise UserError(
            "--sampling.reuse-mib keeps keys and values of batches: leave it out with --sampling.engine slots"
        )
    stops = stop_sets(task)
    config, params = load_weights(path, dtype=dtype, mesh=mesh)
    config = dataclasses.replace(config, compute_dtype=cast(Any, dtype))
    ways = 1
    if mesh is not None:
        ways = rows_over(mesh)
    tokenizer = Tokenizer.load(path)
    key, sampling = jax.random.key(seed), steps.sampling()
    slotted = steps.engine == "slots"
    if steps.engine == "auto":  # slots need a copy of the parameters on every device
        varying = not by_steps or hasattr(task, "environment")  # batches compile for every number of live episodes
        slotted = varying and (mesh is None or mesh.shape["fsdp"] == 1)
    engine: Engine
    if slotted:
        slots = -(-steps.rows // ways) * ways
        engine = SlotEngine(
            config, params, slots=slots, key=key, sampling=sampling, stops=stops, tokenizer=tokenizer, mesh=mesh
        )
    else:
        batching = Batching(steps.rows, ways, _reuse(steps, params, one_device=mesh is None), (STEP,))
        engine = LocalEngine(
            config, params, key=key, sampling=sampling, stops=stops, tokenizer=tokenizer, batching=batching
        )
    return make_policy(engine, task, steps, chat=chat, on_progress=on_progress)


def load_remote_policy(
    path: "str | pathlib.Path",
    url: str,
    task: Any,
    steps: StepOptions,
    *,
    connection: Connection = Connection(),
    seed: int = 0,
    chat: bool = False,
    on_progress: OnProgress = lambda responses, tokens: None,
) -> TaskPolicy:
    """A model on a server on a task; only its tokenizer is read here.

    A server of a known dialect exchanges token ids, any other one text.

    Args:
      path: of the model.
      url: the server's address.
      task: see ``rollouts.tasks``.
      steps: how steps are sampled.
      connection: how to talk to the server.
      seed: of the sampling, in [0, 2**32).
      chat: wrap prompts into the chat template.
      on_progress: see `TaskPolicy`.

    Raises:
      UserError: the tokenizer cannot be read, or an address or option cannot be used.
    """
    from prm_jax.models import Tokenizer

    _check(steps, seed)
    engine = engine_on_server(
        url, connection.model or str(path), Tokenizer.load(path), connection=connection, sampling=steps.sampling(),
        seed=seed, stops=stop_sets(task),
    )  # fmt: skip
    return make_policy(engine, task, steps, chat=chat, on_progress=on_progress)


def engine_on_server(
    url: str,
    model: str,
    tokenizer: Any,
    *,
    connection: Connection = Connection(),
    sampling: SamplingOptions = SamplingOptions(),
    seed: int = 0,
    stops: Sequence[Sequence[str]] = ((),),
) -> Engine:
    """An engine on a server for other uses than training: by token ids where the server has them, otherwise by text.

    Args:
      url: the server's address.
      model: name of the model on the server.
      tokenizer: of the model.
      connection: how to talk to the server.
      sampling: how tokens are chosen.
      seed: of the sampling.
      stops: stop sets, see `Engine`.

    Raises:
      UserError: an address or option that cannot be used, no server, or one with another model.
    """
    if connection.dialect == "auto":
        connection = dataclasses.replace(connection, dialect=detect(ServerClient(url, connection, warn).call))
    if connection.dialect == "text":
        return TextEngine(url, tokenizer, model=model, connection=connection, sampling=sampling, seed=seed, stops=stops)
    # Searches rank by log-probabilities, for which those at temperature 1 are as good.
    return RemoteEngine(
        url, model, tokenizer, connection=connection, sampling=sampling, seed=seed, stops=stops, keep_raw_logp=True
    )


def _check(steps: StepOptions, seed: int) -> None:
    steps.check()
    if not 0 <= seed < 1 << 32:  # larger seeds repeat the random numbers of smaller ones
        raise UserError(f"--seed is {seed}: give a whole number in [0, 2**32)")


def _reuse(steps: StepOptions, params: Any, *, one_device: bool) -> Any:
    import jax

    from prm_jax.models.prefixes import PrefixStore

    mib = steps.reuse_mib
    if mib and not one_device:
        raise UserError("--sampling.reuse-mib keeps keys and values on one device: leave it out with --mesh")
    if mib is None:
        large = sum(x.size for x in jax.tree.leaves(params)) >= _LARGE
        mib = 1024 if large and one_device else 0
    return PrefixStore(mib << 20) if mib > 0 else None
