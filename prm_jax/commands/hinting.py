"""``prm-jax generate --hint.text``: problems that a model solves with a hint and not without, as training data."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from prm_jax.errors import UserError
from prm_jax.rollouts.environments import Feedback, TurnLimits
from prm_jax.rollouts.forced_text import text_spans
from prm_jax.rollouts.hinted import Hinted, respond_with_hints
from prm_jax.rollouts.prompt_tokens import encode_prompt
from prm_jax.verifiers.tools import check_tool, make_tool


def run_hints(options: Any) -> None:
    """Answers problems with and without the hint; writes a JSON line per problem and a summary to standard error.

    Args:
      options: of ``prm-jax generate``.

    Raises:
      UserError: no task, or one without training problems.
    """
    hint = options.hint
    if not hint.task:
        raise UserError("--hint.text needs problems with verdicts: name a task with --hint.task")
    if options.prompt or options.input:
        raise UserError("with --hint.text the prompts come from --hint.task: leave prompts and --input out")
    task, problems = _problems(hint)
    tool = make_tool(hint.tool, hint.markers, option="--hint.markers")
    engine, tokenizer = _engine(options, task, () if tool is None else (tool.markers.close,))
    check_tool(tool, tokenizer, option="--hint.markers")
    found = respond_with_hints(
        engine,
        [encode_prompt(tokenizer, problem.prompt) for problem in problems],
        lambda numbers, texts: [
            verdict.score if verdict.usable else 0.0
            for verdict in task.verify_many([problems[i] for i in numbers], list(texts))
        ],
        tokenizer=tokenizer,
        hint=hint.text,
        limits=TurnLimits(options.max_new_tokens, max_turns=hint.tool_calls + 1),
        at=hint.at,
        rounds=hint.rounds,
        step=tool.step if tool is not None else lambda action: Feedback(done=True),
    )
    for problem, one in zip(problems, found, strict=True):
        if hint.keep == "all" or one.kept:
            print(json.dumps(_record(problem, one, tokenizer), ensure_ascii=False), flush=True)
    before = sum(one.plain_score == 1.0 for one in found)
    after = sum(one.score == 1.0 for one in found)
    kept = sum(one.kept for one in found)
    print(f"{before} of {len(found)} right without the hint, {after} with it; {kept} are kept", file=sys.stderr)


def _problems(hint: Any) -> tuple[Any, Sequence[Any]]:
    from prm_jax.data.tasks import load_task

    task: Any = load_task(hint.task, **hint.task_options)
    problems = [task.train[index] for index in range(min(hint.problems, len(task.train)))]
    if not problems:
        raise UserError(f"the task {hint.task!r} has no training problems; see --hint.task-options eval_fraction")
    return task, problems


def _engine(options: Any, task: Any, ends: Sequence[str]) -> tuple[Any, Any]:
    """An engine whose turns end at `ends` and at the task's stop strings, and its tokenizer."""
    import jax

    from prm_jax.models import Tokenizer, find_model, load_weights
    from prm_jax.rollouts import SamplingOptions, SlotEngine, SlotTuning

    path = find_model(options.model)
    config, params = load_weights(path, dtype=options.dtype)
    tokenizer = Tokenizer.load(path)
    return SlotEngine(
        dataclasses.replace(config, compute_dtype=options.dtype), params, slots=options.hint.slots,
        key=jax.random.key(options.seed), sampling=SamplingOptions(options.temperature, options.top_k, options.top_p),
        stops=((*ends, *task.stop, *options.stop),), tokenizer=tokenizer, tuning=SlotTuning(hold=(0,)),
    ), tokenizer  # fmt: skip


def _record(problem: Any, one: Hinted, tokenizer: Any) -> dict[str, Any]:
    """A line that a task of type jsonl reads: ``solution`` is the hinted response, ``hints`` the spans of the hints in
    it, and ``forced`` those of tool outputs.
    """
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
    return {
        "id": problem.id, "prompt": prompt, "answer": problem.answer, "solution": one.response, "kept": one.kept,
        "score": one.score, "plain": one.plain, "plain_score": one.plain_score, "rounds": one.rounds,
        "hints": text_spans(one.tokens, ~one.hint, tokenizer),
        "forced": text_spans(one.tokens, one.sampled | one.hint, tokenizer),
        **({"failure": one.failure} if one.failure else {}),
    }  # fmt: skip
