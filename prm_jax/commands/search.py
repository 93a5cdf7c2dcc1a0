"""``prm-jax search``: a language model's answers by search over its steps, with accuracy, tokens and calls."""

import dataclasses
import json
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from prm_jax.commands.convert import model_path
from prm_jax.errors import UserError

Method = Literal["majority", "best_of_n", "weighted_vote", "beam", "dvts", "step_beam", "mcts"]
STREAMS = 1 << 14
"""More than a problem's requests in any search."""
_SAMPLED = ("majority", "best_of_n", "weighted_vote")


@dataclass(frozen=True)
class Sampling:
    """How steps are sampled; shared with ``prm-jax label``."""

    temperature: float = 1.0
    """Of the sampling."""
    top_p: float = 1.0
    """Sample within this much probability mass."""
    step_tokens: int = 64
    """Longest step, in tokens."""
    max_new_tokens: int = 256
    """Longest solution, in tokens."""
    rows: int = 64
    """Most sequences generated at once."""


@dataclass(frozen=True)
class Options:
    """Search a language model's steps for the answers to a task's evaluation problems.

    Every method answers with one solution or vote a problem. Standard output: a table. With --out, a JSON line a
    problem (answer, right or not, tokens, candidates), which --resume goes on with.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Policy: Hugging Face directory, GGUF file, or "smollm2"."""
    task: str = "carry"
    """Task: carry, arithmetic, gsm8k, a path that ends in .jsonl, or the name of a reasoning-gym dataset."""
    task_options: dict[str, str] = field(default_factory=dict)
    """Options of that task as name value pairs."""
    problems: int = 64
    """How many evaluation problems, from the first on."""
    method: Method = "best_of_n"
    """majority, best_of_n and weighted_vote sample whole solutions; the others go step by step."""
    scorer: str = "logp"
    """What values prefixes: logp (the policy's own mean log-probability), truth (the task's exact step checker, for
    bounds), or the path of a process reward model."""
    samples: int = 16
    """Solutions a problem (majority, best_of_n, weighted_vote)."""
    beams: int = 4
    """Beams a problem (beam, dvts, step_beam)."""
    width: int = 4
    """Proposals of each beam or leaf."""
    simulations: int = 16
    """Simulations a problem (mcts)."""
    max_steps: int = 16
    """Most steps of a solution."""
    sampling: Sampling = field(default_factory=Sampling)
    """How steps are sampled."""
    chunk: int = 32
    """Problems that advance in lock-step; also what an interruption loses at most."""
    seed: int = 0
    """Seed of the sampling."""
    chat: bool = False
    """Wrap prompts into the model's chat template."""
    out: pathlib.Path | None = None
    """JSON-lines file for the results."""
    resume: bool = False
    """Go on with the file in --out."""


class Engine:
    """A policy on a task: proposes steps with ``generate``, counts them, and reads them as text.

    Args:
      model: name or path of the policy.
      task: gives problems, step boundaries and verdicts.
      sampling: how steps are sampled.
      seed: of the sampling.
      chat: wrap prompts into the chat template.

    Raises:
      UserError: a task whose steps do not end at fixed strings.
    """

    def __init__(self, model: str, task: Any, sampling: Sampling, *, seed: int, chat: bool) -> None:
        import jax

        from prm_jax.models import Tokenizer, load_weights

        if min(sampling.step_tokens, sampling.max_new_tokens, sampling.rows) < 1:
            raise UserError("--sampling.step-tokens, --sampling.max-new-tokens and --sampling.rows must be at least 1")
        path = model_path(model)
        self.config, self.params = load_weights(path)
        self.tokenizer = Tokenizer.load(path)
        self.task, self.sampling, self.chat = task, sampling, chat
        self.boundary = step_boundary(task.splitter)
        self.key = jax.random.key(seed)
        self.problems: Sequence[Any] = ()
        self.first = 0
        self._prompts: list[list[int]] = []

    def begin(self, problems: Sequence[Any], first: int) -> None:
        """Turns to a chunk of problems; ``first`` is the number of its first one in the whole run."""
        self.problems, self.first = problems, first
        self._prompts = [self._encode(problem.prompt) for problem in problems]

    def propose(self, asks: Sequence[Any], count: int, whole: bool) -> list[list[Any]]:
        """Steps after prefixes, or the rest of the solution; see ``language_model.ProposeFn``."""
        import numpy as np

        from prm_jax.models import generate
        from prm_jax.search.language_model import Step

        found: list[list[Any]] = [[] for _ in asks]
        spent = [len(ask.partial.tokens) for ask in asks]
        open_ones = [i for i, used in enumerate(spent) if used < self.sampling.max_new_tokens]
        size = max(1, self.sampling.rows // count)
        new = self.sampling.max_new_tokens if whole else self.sampling.step_tokens
        for start in range(0, len(open_ones), size):
            batch = open_ones[start : start + size]
            filled = batch + [batch[-1]] * (size - len(batch) if len(open_ones) > size else 0)
            prompts = [self._prompts[asks[i].partial.question] + list(asks[i].partial.tokens) for i in filled]
            # Problem and stream choose the random numbers: not the chunk, nor what else is in it.
            ids = [(self.first + asks[i].partial.question) * STREAMS + asks[i].stream for i in filled]
            samples = generate(
                self.config, self.params, prompts, self.key, samples_per_prompt=count, max_new_tokens=new,
                temperature=self.sampling.temperature, top_p=self.sampling.top_p,
                stop=self.task.stop if whole else (*self.boundary, *self.task.stop),
                tokenizer=self.tokenizer, prompt_ids=ids,
            )  # fmt: skip
            tokens, mask, logp = (np.asarray(x) for x in (samples.tokens, samples.mask, samples.logp))
            for place, i in enumerate(batch):
                for row in range(place * count, (place + 1) * count):
                    ids_of_step = tuple(tokens[row][mask[row]].tolist())[: self.sampling.max_new_tokens - spent[i]]
                    ends = whole or self._ends(ids_of_step, spent[i] + len(ids_of_step))
                    found[i].append(Step(ids_of_step, float(logp[row][mask[row]].sum()), ends))
        return found

    def text(self, partial: Any) -> str:
        """The response that a prefix stands for, without special tokens."""
        return self.tokenizer.decode(list(partial.tokens), skip_special=True)

    def record(self, partial: Any, name: str = "") -> Any:
        """A prefix as step data; None while it has no step that is not blank."""
        from prm_jax.data.step_data import StepRecord

        text = self.text(partial)
        steps = tuple(text[start:end] for start, end in self.task.splitter(text))
        problem = self.problems[partial.question]
        return StepRecord(problem.prompt, steps, None, None, problem.id, name or problem.id) if steps else None

    def answer(self, partial: Any) -> str | None:
        """What a solution answers, numbers in one form, so that equal answers are equal texts; None for none."""
        from prm_jax.verifiers.extraction import ANSWER_MARKERS, find_answer
        from prm_jax.verifiers.number import parse_number

        markers = (*self.task.splitter.answer_markers, *ANSWER_MARKERS)
        text = self.text(partial)
        found = find_answer(text, "marker", markers=markers) or find_answer(text, "boxed")
        found = found or find_answer(text, "last_number")
        number = parse_number(found) if found is not None else None
        return found if number is None else str(number)

    def _ends(self, step: tuple[int, ...], length: int) -> bool:
        if not step or length >= self.sampling.max_new_tokens or step[-1] in self.tokenizer.eos_ids:
            return True
        text = self.tokenizer.decode(list(step), skip_special=True)
        return any(stop in text for stop in self.task.stop)

    def _encode(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str) and not self.chat:
            return list(self.tokenizer.encode(prompt, add_special=True))
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids: Any = messages if isinstance(messages[0], int) else self.tokenizer.chat(list(messages))
        return list(ids)


def step_boundary(splitter: Any) -> tuple[str, ...]:
    """The strings at which a step ends.

    Raises:
      UserError: the splitter does not cut at fixed strings.
    """
    known = {"newline": ("\n",), "blank_line": ("\n\n",), "separator": splitter.separators}
    if splitter.how not in known:
        raise UserError(
            f"this task cuts steps by {splitter.how!r}; search needs steps that end at fixed strings: newline, "
            "blank_line or separator"
        )
    return tuple(known[splitter.how])


def make_scorer(name: str, engine: Engine) -> Callable[[Sequence[Any]], list[float]]:
    """The function that values prefixes.

    Raises:
      UserError: a task without a step checker (truth), or a path without a process reward model.
    """
    if name == "logp":
        return lambda partials: [p.logp / max(len(p.tokens), 1) for p in partials]
    if name == "truth":
        return lambda partials: [_truth(engine, p) for p in partials]
    if not pathlib.Path(name).exists():
        raise UserError(f"no scorer {name!r}: it is logp, truth, or the path of a process reward model")
    from prm_jax.training.prm.model import load_prm
    from prm_jax.training.prm.score import score_solutions

    prm = load_prm(name)

    def by_model(partials: Sequence[Any]) -> list[float]:
        records = [engine.record(p) for p in partials]
        written = [record for record in records if record is not None]
        scored = iter(score_solutions(prm, written) if written else [])
        # A prefix without a step has nothing to be scored by: it goes last.
        return [next(scored).response if r is not None else -1e9 for r in records]

    return by_model


def run(options: Options) -> None:
    """Searches chunk by chunk, writing as it goes, and prints the table."""
    from prm_jax.data.tasks import load_task

    if min(options.problems, options.chunk, options.samples, options.beams, options.width, options.simulations) < 1:
        raise UserError("--problems, --chunk, --samples, --beams, --width and --simulations must be at least 1")
    if options.simulations * options.width >= STREAMS or options.max_steps * options.beams >= STREAMS:
        raise UserError(f"--simulations times --width and --max-steps times --beams must stay below {STREAMS}")
    task: Any = load_task({"name": options.task, **options.task_options})
    problems = list(task.eval)[: options.problems]
    if not problems:
        raise UserError(f"the task {options.task!r} has no evaluation problems")
    done = begin_results(options, task.fingerprint)
    engine = Engine(options.model, task, options.sampling, seed=options.seed, chat=options.chat)
    scorer = make_scorer(options.scorer, engine)
    begun = time.monotonic()
    for start in range(0, len(problems), options.chunk):
        chunk = problems[start : start + options.chunk]
        if start + len(chunk) <= len(done):
            continue
        del done[start:]  # a chunk is done anew as a whole, so that lines stay in order
        engine.begin(chunk, start)
        lines = list(_results(options, engine, scorer))
        done += lines
        append_results(options.out, start, lines)
        _progress(len(done), len(problems), done, time.monotonic() - begun)
    print(_table(options, done))


def search(options: Options, engine: Engine, scorer: Callable[[Sequence[Any]], list[float]]) -> Any:
    """One chunk's search, by the method of the options; gives ``language_model.Found``."""
    from prm_jax.search import language_model as lm

    count = len(engine.problems)
    steps: dict[str, Any] = {"width": options.width, "max_steps": options.max_steps}
    if options.method in _SAMPLED:
        return lm.sample_search(engine.propose, scorer, count, samples=options.samples)
    if options.method in ("beam", "dvts"):
        trees = options.beams if options.method == "dvts" else 1
        return lm.beam_search(engine.propose, scorer, count, beams=options.beams, trees=trees, **steps)
    if options.method == "step_beam":
        return lm.step_beam_search(engine.propose, scorer, count, beams=options.beams, **steps)
    return lm.tree_search(engine.propose, scorer, count, simulations=options.simulations, **steps)[0]


def choose(options: Options, engine: Engine, candidates: Sequence[Any]) -> Any:
    """The candidate to answer with; None where there is none.

    A vote gives the best candidate with the winning answer. Weights are scores moved to be at least 0.
    """
    import numpy as np

    from prm_jax.search import vote

    if not candidates or options.method not in ("majority", "weighted_vote"):
        return candidates[0] if candidates else None
    answers = [engine.answer(c.partial) for c in candidates]
    known = sorted({a for a in answers if a is not None}, key=answers.index)
    ids = np.array([[known.index(a) if a is not None else -1 for a in answers]])
    scores = np.array([[c.score for c in candidates]])
    weights = np.exp(scores) if options.scorer == "logp" else np.maximum(scores, 0.0)
    winner = int(vote(weights, ids, "majority" if options.method == "majority" else "weighted")[0])
    return candidates[answers.index(known[winner])] if winner >= 0 else candidates[0]


def begin_results(options: Any, fingerprint: str) -> list[dict[str, Any]]:
    """Opens the file of results; the lines that are already there, with ``resume``.

    Raises:
      UserError: a file that is there without ``resume``, or was made with other settings.
    """
    if options.out is None:
        if options.resume:
            raise UserError("--resume needs --out: which file should go on?")
        return []
    plain = {k: v for k, v in _plain(options).items() if k not in ("out", "resume")}
    settings = json.loads(json.dumps({"settings": plain, "task": fingerprint}, default=str))
    if options.out.exists() and not options.resume:
        raise UserError(f"{options.out} exists: go on with it by --resume, or give another --out")
    if not options.out.exists():
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(settings) + "\n")
        return []
    head, *lines = [json.loads(line) for line in _whole_lines(options.out)] or [{}]
    if head != settings:
        old, new = head.get("settings", {}), settings["settings"]
        differ = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)) or ["the task's problems"]
        raise UserError(
            f"{options.out} was made with other {', '.join(differ)}: go on with the same, or give another --out"
        )
    return lines


def append_results(path: pathlib.Path | None, keep: int, lines: Sequence[dict[str, Any]]) -> None:
    """Writes a chunk's lines behind the first ``keep``, in one replacement of the file."""
    if path is None:
        return
    kept = _whole_lines(path)[: 1 + keep]
    whole = "".join(line + "\n" for line in [*kept, *(json.dumps(line, ensure_ascii=False) for line in lines)])
    partial = path.with_name(path.name + ".partial")
    partial.write_text(whole, encoding="utf-8")
    partial.replace(path)


def _whole_lines(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a line without its end was cut off
        for line in lines:
            json.loads(line)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot go on with {path}: {error}") from error
    return lines


def _plain(options: Any) -> dict[str, Any]:
    return dataclasses.asdict(options)


def _results(options: Options, engine: Engine, scorer: Any) -> Iterator[dict[str, Any]]:
    found = search(options, engine, scorer)
    for b, problem in enumerate(engine.problems):
        own = found.candidates[b]
        texts = [engine.text(c.partial) for c in own]
        verdicts = engine.task.verify_many([problem] * len(own), texts) if own else []
        right = {c.partial.steps: v.score for c, v in zip(own, verdicts, strict=True)}
        chosen = choose(options, engine, own)
        yield {
            "id": problem.id,
            "answer": None if chosen is None else engine.answer(chosen.partial),
            "response": None if chosen is None else engine.text(chosen.partial),
            "correct": 0.0 if chosen is None else right[chosen.partial.steps],
            "any_correct": max(right.values(), default=0.0),
            "candidates": len(own),
            "tokens": int(found.tokens[b]),
            "proposals": int(found.proposals[b]),
            "scored": int(found.scored[b]),
        }


def _truth(engine: Engine, partial: Any) -> float:
    """1 while every step is right; the share of right steps before the first error otherwise, less than 1."""
    text = engine.text(partial)
    labels = engine.task.step_labels(engine.problems[partial.question], text)
    if labels is None:
        raise UserError(f"the task {engine.task.name!r} has no exact step checker: give another --scorer")
    if not labels:
        return 0.0
    return 1.0 if all(labels) else labels.index(False) / len(labels) - 1.0


def _progress(count: int, total: int, lines: Sequence[dict[str, Any]], seconds: float) -> None:
    right = sum(line["correct"] for line in lines) / max(len(lines), 1)
    print(f"{count}/{total} problems, accuracy {right:.3f}, {seconds:.0f} s", file=sys.stderr, flush=True)


def _table(options: Options, lines: Sequence[dict[str, Any]]) -> str:
    count = len(lines)
    mean = {name: sum(line[name] for line in lines) / count for name in ("correct", "any_correct", "tokens",
                                                                         "proposals", "scored")}  # fmt: skip
    none = Counter(line["answer"] is None for line in lines)[True]
    rows = [
        ("problems", f"{count}"),
        ("accuracy", f"{mean['correct']:.4f}"),
        ("a right candidate", f"{mean['any_correct']:.4f}"),
        ("without an answer", f"{none}"),
        ("tokens a problem", f"{mean['tokens']:.1f}"),
        ("proposals a problem", f"{mean['proposals']:.1f}"),
        ("prefixes scored", f"{mean['scored']:.1f}"),
    ]
    return "\n".join([f"{options.method}, scored by {options.scorer}", *(f"{name:22s}{value}" for name, value in rows)])
