"""Tasks and prompts: problems, their split by hash, prompt streams, and responses cut into steps.

Nothing here imports jax. Guide: docs/own_data.md; reference: docs/data.md.
"""

from prm_jax.data.answers import read_answer
from prm_jax.data.arithmetic import ArithmeticTask
from prm_jax.data.carry import CarryTask
from prm_jax.data.code_task import CodeOptions, code_task
from prm_jax.data.consensus import Consensus, consensus, read_first_errors
from prm_jax.data.describe import describe_task, describe_verifier
from prm_jax.data.file_task import FileOptions, Gsm8kOptions, file_task
from prm_jax.data.gym import GymTask
from prm_jax.data.judging import make_verifier
from prm_jax.data.pipeline import BatchStream, PromptBuffer, PromptStream
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
from prm_jax.data.prompts import read_prompts
from prm_jax.data.selection import Selection, select_by_solve_rate, solve_rate_passes
from prm_jax.data.splitters import make_splitter
from prm_jax.data.standard_task import StandardTask, make_task
from prm_jax.data.step_data import StepRecord, read_step_data, write_step_data
from prm_jax.data.steps import (
    StepSplitter,
    join_steps,
    step_ids_from_offsets,
    step_ids_from_separators,
    step_ids_from_text,
    token_starts,
)
from prm_jax.data.tasks import check_task, load_task

__all__ = [
    "ArithmeticTask",
    "BatchStream",
    "CarryTask",
    "CodeOptions",
    "Consensus",
    "FileOptions",
    "Gsm8kOptions",
    "GymTask",
    "Overlap",
    "Problem",
    "PromptBuffer",
    "PromptStream",
    "Selection",
    "StandardTask",
    "StepRecord",
    "StepSplitter",
    "Task",
    "check_task",
    "code_task",
    "consensus",
    "describe_task",
    "describe_verifier",
    "file_task",
    "find_overlap",
    "fingerprint",
    "is_eval",
    "join_steps",
    "load_task",
    "make_splitter",
    "make_task",
    "make_verifier",
    "problem_hash",
    "read_answer",
    "read_first_errors",
    "read_prompts",
    "read_step_data",
    "select_by_solve_rate",
    "solve_rate_passes",
    "split_problems",
    "step_ids_from_offsets",
    "step_ids_from_separators",
    "step_ids_from_text",
    "token_starts",
    "write_step_data",
]
