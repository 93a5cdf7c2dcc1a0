"""``prm-jax generate --hint.text``: problems that a model solves with a hint and not without, as training data."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from prm_jax.errors import UserError
from prm_jax.rollouts.environments import Feedback, TurnLimits
from prm_jax.rollouts.hinted import Hinted, respond_with_hints


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
    engine, tokenizer = _engine(options, task)
    found = respond_with_hints(
        engine,
        [_encode(tokenizer, problem.prompt) for problem in problems],
        lambda numbers, texts: [
            verdict.score if verdict.usable else 0.0
            for verdict in task.verify_many([problems[i] for i in numbers], list(texts))
        ],
        tokenizer=tokenizer,
        hint=hint.text,
        limits=TurnLimits(options.max_new_tokens, max_turns=hint.tool_calls + 1),
        at=hint.at,
        rounds=hint.rounds,
        step=_tool(hint.tool),
    )
    for problem, one in zip(problems, found, strict=True):
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


def _engine(options: Any, task: Any) -> tuple[Any, Any]:
    import jax

    from prm_jax.models import Tokenizer, find_model, load_weights
    from prm_jax.rollouts import SamplingOptions, SlotEngine, SlotTuning

    path = find_model(options.model)
    config, params = load_weights(path, dtype=options.dtype)
    tokenizer = Tokenizer.load(path)
    ends = ("</python>",) if options.hint.tool == "python" else ()
    return SlotEngine(
        dataclasses.replace(config, compute_dtype=options.dtype), params, slots=options.hint.slots,
        key=jax.random.key(options.seed), sampling=SamplingOptions(options.temperature, options.top_k, options.top_p),
        stops=((*ends, *task.stop, *options.stop),), tokenizer=tokenizer, tuning=SlotTuning(hold=(0,)),
    ), tokenizer  # fmt: skip


def _tool(name: str) -> Any:
    if name == "python":
        from prm_jax.verifiers.python_tool import PythonTool

        return PythonTool().step
    return lambda action: Feedback(done=True)


def _encode(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt, add_special=True))
    return list(prompt) if isinstance(prompt[0], int) else list(tokenizer.chat([dict(message) for message in prompt]))


def _record(problem: Any, one: Hinted, tokenizer: Any) -> dict[str, Any]:
    """A line that a task of type jsonl reads: ``solution`` is the hinted response, ``forced`` its spans not sampled."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
    return {
        "id": problem.id, "prompt": prompt, "answer": problem.answer, "solution": one.response, "kept": one.kept,
        "score": one.score, "plain": one.plain, "plain_score": one.plain_score, "rounds": one.rounds,
        "forced": _spans(one, tokenizer), **({"failure": one.failure} if one.failure else {}),
    }  # fmt: skip


def _spans(one: Hinted, tokenizer: Any) -> list[list[int]]:
    """Characters [start, end) of the response that the model did not draw."""
    spans: list[list[int]] = []
    position = 0
    for end in range(1, len(one.tokens) + 1):
        length = len(tokenizer.decode([int(token) for token in one.tokens[:end]]))
        if not one.sampled[end - 1] and length > position:
            if spans and spans[-1][1] == position:
                spans[-1][1] = length
            else:
                spans.append([position, length])
        position = length
    return spans
