"""Tasks and prompts: problems, their split by hash, prompt streams, and responses cut into steps.

Nothing here imports jax.
"""

from prm_jax.data.arithmetic import ArithmeticTask
from prm_jax.data.carry import CarryTask
from prm_jax.data.gym import GymTask
from prm_jax.data.jsonl import FileTask, gsm8k_task, jsonl_task
from prm_jax.data.pipeline import PromptBuffer, PromptStream
from prm_jax.data.problems import (
    Overlap,
    Problem,
    Task,
    find_overlap,
    fingerprint,
    is_eval,
    problem_hash,
    split_problems,
)
from prm_jax.data.selection import Selection, select_by_solve_rate, solve_rate_passes
from prm_jax.data.splitters import make_splitter
from prm_jax.data.steps import (
    StepSplitter,
    join_steps,
    step_ids_from_offsets,
    step_ids_from_separators,
    step_ids_from_text,
    token_starts,
)
from prm_jax.data.tasks import load_task

__all__ = [
    "ArithmeticTask",
    "CarryTask",
    "FileTask",
    "GymTask",
    "Overlap",
    "Problem",
    "PromptBuffer",
    "PromptStream",
    "Selection",
    "StepSplitter",
    "Task",
    "find_overlap",
    "fingerprint",
    "gsm8k_task",
    "is_eval",
    "join_steps",
    "jsonl_task",
    "load_task",
    "make_splitter",
    "problem_hash",
    "select_by_solve_rate",
    "solve_rate_passes",
    "split_problems",
    "step_ids_from_offsets",
    "step_ids_from_separators",
    "step_ids_from_text",
    "token_starts",
]
