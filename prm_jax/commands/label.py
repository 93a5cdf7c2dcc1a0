"""``prm-jax label``: step labels from rollouts of a policy, in the format that ``prm-jax train-prm`` reads."""

import pathlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from prm_jax.commands.search import Engine, Sampling
from prm_jax.errors import UserError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """Label the steps of solutions by how often the policy's rollouts from there end right.

    Writes a JSON line a solution: prompt, steps, labels (null where nothing is known), outcome, and where they come
    from: policy, sampling, and the counts behind every label.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Policy: Hugging Face directory, GGUF file, or "smollm2"."""
    out: Annotated[pathlib.Path, tyro.conf.Positional]
    """JSON-lines file to write."""
    task: str = "carry"
    """Task: carry, arithmetic, gsm8k, a path that ends in .jsonl, or the name of a reasoning-gym dataset."""
    task_options: dict[str, str] = field(default_factory=dict)
    """Options of that task as name value pairs."""
    problems: int = 64
    """How many training problems, from the first on."""
    method: Literal["omega", "every_step"] = "omega"
    """omega: binary search for the first errors of wrong rollouts (OmegaPRM); every_step: rollouts after every step of
    sampled solutions."""
    labels: Literal["soft", "hard", "vstar"] = "hard"
    """soft: the share of right rollouts; hard: whether any was right; vstar: hard, and right before a right step."""
    rollouts: int = 8
    """Rollouts from each prefix."""
    searches: int = 16
    """Most searches a problem (omega)."""
    solutions: int = 4
    """Solutions a problem (every_step)."""
    chunk: int = 32
    """Problems in lock-step."""
    sampling: Sampling = field(default_factory=Sampling)
    """How rollouts are sampled."""
    seed: int = 0
    """Seed of the sampling."""
    chat: bool = False
    """Wrap prompts into the model's chat template."""


def run(options: Options) -> None:
    """Labels chunk by chunk and writes the file at the end of each."""
    from prm_jax.data.step_data import write_step_data
    from prm_jax.data.tasks import load_task

    if min(options.problems, options.rollouts, options.searches, options.solutions, options.chunk) < 1:
        raise UserError("--problems, --rollouts, --searches, --solutions and --chunk must be at least 1")
    if options.out.exists():
        raise UserError(f"{options.out} exists: give another name, or remove it")
    task: Any = load_task({"name": options.task, **options.task_options})
    problems = [task.train[i] for i in range(min(options.problems, len(task.train)))]
    engine = Engine(options.model, task, options.sampling, seed=options.seed, chat=options.chat)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records: list[Any] = []
    begun, calls = time.monotonic(), 0
    for start in range(0, len(problems), options.chunk):
        engine.begin(problems[start : start + options.chunk], start)
        roller = Roller(engine)
        found = _omega(options, roller) if options.method == "omega" else _every_step(options, roller)
        records += found
        calls += roller.calls
        partial = options.out.with_name(options.out.name + ".partial")
        write_step_data(partial, records)
        seconds = time.monotonic() - begun
        done = min(start + options.chunk, len(problems))
        print(f"{done}/{len(problems)} problems, {len(records)} solutions, {calls} rollouts, {seconds:.0f} s",
              file=sys.stderr, flush=True)  # fmt: skip
    if not records:
        partial.unlink()
        raise UserError(
            f"no solution could be labelled: the rollouts of all {len(problems)} problems were all right or all wrong; "
            "take other problems, more --rollouts or another --sampling.temperature"
        )
    partial.replace(options.out)
    known = [label for record in records for label in record.labels or () if label is not None]
    errors = sum(label == 0 for label in known)
    print(f"{options.out}: {len(records)} solutions, {len(known)} labels, {errors} of them 0, {calls} rollouts")


class Roller:
    """Rollouts from prefixes of token ids, judged by the task.

    Args:
      engine: already turned to a chunk of problems.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.calls = engine, 0
        self._asked: dict[int, int] = {}

    def __call__(self, requests: Sequence[Any], count: int) -> list[list[Any]]:
        """``count`` rollouts of each request; see ``omega_label.RolloutFn``."""
        from prm_jax.search import Rollout
        from prm_jax.search.language_model import Ask, Partial

        asks = []
        for request in requests:
            stream = self._asked.get(request.question, 0)
            self._asked[request.question] = stream + 1
            asks.append(Ask(Partial(request.question, request.prefix), stream))
        self.calls += len(requests) * count
        answers = self.engine.propose(asks, count, True)
        problems = [self.engine.problems[r.question] for r in requests for _ in range(count)]
        prefixes = [ask.partial.tokens for ask in asks]
        # A prefix that fills the whole length has no rollouts: it is what it is.
        whole = [
            prefix + (steps[i].tokens if steps else ())
            for prefix, steps in zip(prefixes, answers, strict=True)
            for i in range(count)
        ]
        texts = [self.engine.tokenizer.decode(list(tokens), skip_special=True) for tokens in whole]
        verdicts = iter(self.engine.task.verify_many(problems, texts))
        out = []
        for r, (request, prefix) in enumerate(zip(requests, prefixes, strict=True)):
            found = []
            for i in range(count):
                rest = whole[r * count + i][len(prefix) :]
                steps = self.split(whole[r * count + i])[len(request.prefix) :]
                found.append(Rollout(tuple(steps), float(len(rest)), next(verdicts).score > 0.5))
            out.append(found)
        return out

    def split(self, tokens: Tokens) -> list[Tokens]:
        """The token ids of each step of a response."""
        import numpy as np

        from prm_jax.data.steps import step_ids_from_text

        if not tokens:
            return []
        row = np.array([tokens])
        tokenizer = self.engine.tokenizer
        ids, _, _ = step_ids_from_text(
            row, np.ones_like(row, bool), tokenizer.token_bytes, self.engine.task.splitter,
            special_ids=tokenizer.special_ids,
        )  # fmt: skip
        return [tuple(row[0][ids[0] == step].tolist()) for step in range(int(ids.max()) + 1)]


def _omega(options: Options, roller: Roller) -> list[Any]:
    """A record for every located error: what is known of each prefix, and the first wrong step."""
    from prm_jax.search import omega_label

    engine = roller.engine
    found = omega_label(
        roller, len(engine.problems), rollouts=options.rollouts, searches=options.searches,
        L=float(options.sampling.max_new_tokens),
    )  # fmt: skip
    states = {(s.question, s.prefix): (s.correct, s.total) for s in found.states}
    records = []
    for error in found.errors:
        counts = [states.get((error.question, error.steps[: i + 1])) for i in range(len(error.steps))]
        # The whole solution is wrong, which no rollout needs to say.
        counts[-1] = counts[-1] or (0, 1)
        record = _record(options, engine, error.question, error.steps, counts, f"omega/{error.number}", 0.0)
        records += [record] if record is not None else []
    return records


def _every_step(options: Options, roller: Roller) -> list[Any]:
    """A record for every sampled solution, with rollouts after each of its steps but the last."""
    from prm_jax.search import Request

    engine = roller.engine
    roots = roller([Request(b, ()) for b in range(len(engine.problems))], options.solutions)
    solutions = [(b, rollout) for b, found in enumerate(roots) for rollout in found if rollout.steps]
    requests = [Request(b, r.steps[:i]) for b, r in solutions for i in range(1, len(r.steps))]
    counts = iter([(sum(x.correct for x in found), len(found)) for found in roller(requests, options.rollouts)])
    records = []
    for number, (b, rollout) in enumerate(solutions):
        own = [next(counts) for _ in rollout.steps[:-1]] + [(int(rollout.correct), 1)]
        record = _record(options, engine, b, rollout.steps, own, f"sample/{number}", float(rollout.correct))
        records += [record] if record is not None else []
    return records


def _record(
    options: Options, engine: Engine, question: int, steps: Sequence[Any], counts: Sequence[tuple[int, int] | None],
    name: str, outcome: float,
) -> Any:  # fmt: skip
    """Step data of one solution; None where its text does not have the steps that its tokens have."""
    import numpy as np

    from prm_jax import rl
    from prm_jax.data.step_data import StepRecord

    text = engine.tokenizer.decode([token for step in steps for token in step], skip_special=True)
    texts = tuple(text[start:end] for start, end in engine.task.splitter(text))
    if len(texts) != len(steps):
        return None
    correct = np.array([[0 if c is None else c[0] for c in counts]])
    total = np.array([[0 if c is None else c[1] for c in counts]])
    # A step before one from which the answer was reached is right for "vstar", whether it was probed or not.
    labels = np.asarray(rl.mc_targets(correct, total, np.ones_like(total, bool), how=options.labels))[0].tolist()
    known = [c is not None or (options.labels == "vstar" and labels[i] > 0) for i, c in enumerate(counts)]
    problem = engine.problems[question]
    provenance = {
        "method": options.method,
        "labels": options.labels,
        "model": options.model,
        "rollouts": options.rollouts,
        "temperature": options.sampling.temperature,
        "top_p": options.sampling.top_p,
        "max_new_tokens": options.sampling.max_new_tokens,
        "seed": options.seed,
        "correct": [None if c is None else c[0] for c in counts],
        "total": [None if c is None else c[1] for c in counts],
    }
    own = tuple(label if know else None for label, know in zip(labels, known, strict=True))
    return StepRecord(problem.prompt, texts, own, outcome, problem.id, f"{problem.id}/{name}", provenance)
