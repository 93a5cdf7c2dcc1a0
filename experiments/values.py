"""Value models for experiments: learned from a policy's own solutions and their outcomes."""

import pathlib

import jax

from prm_jax import prm as prms
from prm_jax.data import load_task
from prm_jax.data.step_data import StepRecord
from prm_jax.models import generate
from prm_jax.models.generation import DecodeOptions
from prm_jax.models.loading import load_model
from prm_jax.models.model_options import ModelOptions
from prm_jax.prime import Options
from prm_jax.rollouts.prompt_tokens import encode_prompt


def sampled_solutions(
    policy: pathlib.Path, options: Options, *, problems: int, samples: int, first: int = 0, held_out: bool = False
) -> list[StepRecord]:
    """Solutions of training or held-out problems from number `first` on, sampled from a policy, with their outcomes."""
    task = load_task({"name": options.task.name, **options.task.options})
    config, params, tokenizer = load_model(ModelOptions(path=str(policy)))
    chosen = [(task.eval if held_out else task.train)[index] for index in range(first, first + problems)]
    found = generate(
        config, params, [encode_prompt(tokenizer, problem.prompt) for problem in chosen], jax.random.key(options.seed),
        samples_per_prompt=samples, max_new_tokens=options.rollout.max_new_tokens,
        options=DecodeOptions(tokenizer=tokenizer),
    )  # fmt: skip
    tokens, mask, finished = (jax.device_get(x) for x in (found.tokens, found.mask, found.finished))
    texts = [tokenizer.decode(row[own].tolist(), skip_special=True) for row, own in zip(tokens, mask, strict=True)]
    rows = [problem for problem in chosen for _ in range(samples)]
    verdicts = task.verify_many(rows, texts)
    records = []
    for number, (problem, text, verdict) in enumerate(zip(rows, texts, verdicts, strict=True)):
        steps = tuple(text[start:end] for start, end in task.splitter(text))
        ended = {"finished": bool(finished[number])}
        if steps:
            records.append(StepRecord(problem.prompt, steps, None, verdict.score, problem.id, f"{number}", ended))
    return records


def value_model(
    policy: pathlib.Path, options: Options, path: pathlib.Path, *, problems: int, samples: int, epochs: int
) -> pathlib.Path:
    """A model of the policy's values: every step of its solutions is regressed on the outcome.

    Args:
      policy: directory of the policy, from which the model starts, too.
      options: task, length and seed.
      path: run directory; a finished one is left alone.
      problems: training problems that are solved.
      samples: solutions of each.
      epochs: passes over them.

    Returns:
      The directory of the model.
    """
    if not (path / "result.json").is_file():
        records = sampled_solutions(policy, options, problems=problems, samples=samples)
        prms.train(
            prms.TrainPRMOptions(
                text=prms.POLICY_LAYOUT, model=prms.BaseOptions(path=str(policy)), prm=prms.Value(),
                data=prms.DataOptions(max_length=options.rollout.max_prompt_tokens + options.rollout.max_new_tokens),
                train=prms.OptimizerOptions(learning_rate=1e-3, batch_size=64, epochs=epochs),
                seed=options.seed, plots=False,
            ),
            path, data=records, resume=path.is_dir(),
        )  # fmt: skip
    return path / "model"
