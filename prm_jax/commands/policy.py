"""What ``prm-jax search`` and ``prm-jax label`` share: the policy, the task, and where the work is divided."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from prm_jax.commands.devices import mesh_of
from prm_jax.config_io import OptionsOf
from prm_jax.errors import UserError
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.option_ranges import at_least, check_ranges, within
from prm_jax.rollouts.sampling_options import Connection, StepOptions
from prm_jax.runs.distributed_options import DistributedOptions
from prm_jax.terminal import print_warning

if TYPE_CHECKING:
    from prm_jax.rollouts import TaskPolicy
    from prm_jax.rollouts.engine import OnProgress


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """Options of both commands."""

    model: Annotated[str, tyro.conf.Positional]
    """Policy: Hugging Face directory, GGUF file, name on the hub (org/name), or "smollm2"."""
    task: str = "carry"
    """Task: carry, arithmetic, gsm8k (with its files in --task-options train PATH eval PATH), a data file or directory,
    the name of a reasoning-gym data set, or package.module:function or file.py:function."""
    task_options: Annotated[dict[str, str], OptionsOf("task")] = field(default_factory=dict)
    """Options of that task as name value pairs, for example: verifier number splitter blank."""
    problems: Annotated[int, at_least(1)] = 64
    """Number of problems."""
    first_problem: Annotated[int, at_least(0)] = 0
    """Index of the first problem, so that several machines can divide the work; the results are those of one."""
    chunk: Annotated[int, at_least(1)] = 32
    """Problems that advance together; also the most that an interruption loses."""
    sampling: StepOptions = field(default_factory=StepOptions)
    """How steps are sampled."""
    seed: Annotated[int, within(0, 2**32 - 1)] = 0
    """Seed of the sampling."""
    chat: bool = False
    """Wrap prompts into the model's chat template."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the policy's parameters and of all arithmetic (without --server)."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Devices for the policy and for a process reward model."""
    server: str = ""
    """Address of a server that runs the policy (vLLM, SGLang, llama.cpp, or any with the completions API), such as
    http://localhost:8000; only the tokenizer is then read from the model's directory."""
    connection: Connection = field(default_factory=Connection)
    """How to talk to that server."""

    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    """Several processes that work together."""

    def check(self) -> None:
        """Checks the ranges.

        Raises:
          UserError: an option is out of range.
        """
        problems = check_ranges(self)
        if problems:
            raise UserError("\n".join(problems))


def load_policy(options: PolicyOptions, task: Any, on_progress: "OnProgress", *, by_steps: bool = True) -> "TaskPolicy":
    """The policy on the task, in this process or behind --server; `by_steps` as in `load_local_policy`."""
    from prm_jax.models import find_model
    from prm_jax.rollouts import load_local_policy, load_remote_policy

    path = find_model(options.model)
    if options.server:
        connection = options.connection
        if not connection.model:
            connection = dataclasses.replace(connection, model=options.model)
        return load_remote_policy(
            path, options.server, task, options.sampling, connection=connection, seed=options.seed, chat=options.chat,
            on_progress=on_progress,
        )  # fmt: skip
    return load_local_policy(
        path, task, options.sampling, seed=options.seed, chat=options.chat, dtype=options.dtype,
        mesh=mesh_of(options.mesh), by_steps=by_steps, on_progress=on_progress,
    )  # fmt: skip


def load_problems(options: PolicyOptions, part: Literal["train", "eval"]) -> tuple[Any, Sequence[Any]]:
    """(the task, the problems that the options select); prints the notes on the task's files.

    Raises:
      UserError: there are none.
    """
    from prm_jax.data.tasks import load_task

    task: Any = load_task({"name": options.task, **options.task_options})
    every = getattr(task, part)
    end = min(options.first_problem + options.problems, len(every))
    problems = [every[i] for i in range(options.first_problem, end)]
    if not problems:
        raise UserError(f"the task {options.task!r} has no {_PARTS[part]}{_where(options, task, len(every), part)}")
    for note in getattr(task, "notes", ()):
        print_warning(note)
    return task, problems


_PARTS = {"train": "training problems, which are the ones to label",
          "eval": "evaluation problems, which are the ones to search"}  # fmt: skip


def _where(options: PolicyOptions, task: Any, count: int, part: str) -> str:
    if count:
        return f" from number {options.first_problem} on: there are {count}"
    from_file = part == "eval" and hasattr(task, "notes")
    return "; for a file with problems only, use --task-options eval_fraction 1" if from_file else ""


def settings_of(options: PolicyOptions) -> dict[str, Any]:
    """The options that determine results: of a server, what it runs and how it is asked, not its address."""
    plain = dataclasses.asdict(options)
    del plain["distributed"]
    connection = plain.pop("connection")
    if plain.pop("server"):
        plain["server"] = {name: connection[name] for name in ("model", "dialect", "prompts", "logprobs")}
    return plain
