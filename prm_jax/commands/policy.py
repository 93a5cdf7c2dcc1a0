"""The policy of ``prm-jax search`` and ``prm-jax label``: a model in this process or a server, on a task."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from prm_jax.commands.convert import model_path
from prm_jax.errors import UserError
from prm_jax.terminal import print_warning

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from prm_jax.models import ModelConfig
    from prm_jax.models.prefixes import PrefixStore
    from prm_jax.search.server import Completion

STREAMS = 1 << 14
"""More than a problem's requests in any search."""


@dataclass(frozen=True)
class Sampling:
    """How steps are sampled."""

    temperature: float = 1.0
    """Of the sampling."""
    top_p: float = 1.0
    """Sample within this much probability mass."""
    step_tokens: int = 64
    """Longest step, in tokens."""
    max_new_tokens: int = 256
    """Longest solution, in tokens."""
    rows: int = 64
    """Most sequences generated at once, but all that are asked for after one prefix (without --server)."""
    reuse_mib: int | None = None
    """Memory in MiB for keys and values of prefixes, so that they are not read anew for each step, 0 for none; by
    default 1024 for models of 20 million parameters and more, none for smaller ones, where it does not pay (without
    --server; on one device)."""


@dataclass(frozen=True)
class Connection:
    """How to talk to the server in --server."""

    model: str = ""
    """What the server calls the model; empty: the same as here."""
    prompts: Literal["text", "tokens"] = "text"
    """Send prompts as texts, or as token ids, for servers that take these."""
    logprobs: bool = True
    """Ask for log-probabilities; without them the scorer logp is not possible and a tree's priors are equal."""
    at_once: int = 0
    """Most completions of one request, 0: all; 1 for servers that give one at a time; for llama.cpp its slots."""
    workers: int = 16
    """Most requests at the same time."""
    timeout: float = 300.0
    """Seconds to wait for an answer."""
    retries: int = 4
    """How often to ask again when the server is busy, fails or hangs up."""
    backoff: float = 0.5
    """Seconds before asking again the first time, doubled each time."""
    key_from: str = ""
    """Environment variable that holds the server's key, if it wants one."""


class Written(NamedTuple):
    """What a policy wrote.

    Attributes:
      tokens: its ids.
      logp: sum of their log-probabilities.
      over: nothing comes after it; None: its tokens tell.
    """

    tokens: tuple[int, ...]
    logp: float
    over: bool | None


OnWritten = Callable[[int, int], None]
"""Told how many continuations were written, and of how many tokens in all, as they come."""


class Policy(Protocol):
    """Goes on with prompts of token ids.

    Attributes:
      tokenizer: of the model.
      context: most tokens of a prompt and its solution; None where it is not known.
    """

    tokenizer: Any
    context: int | None

    def __call__(
        self, prompts: Sequence[list[int]], ids: Sequence[int], count: int, *, room: Sequence[int], longest: int,
        stop: tuple[str, ...], boundary: tuple[str, ...],
    ) -> list[list[Written]]:  # fmt: skip
        """`count` continuations of each prompt.

        Args:
          prompts: token ids.
          ids: one number a prompt that chooses its randomness.
          count: continuations of each.
          room: tokens that are left to each.
          longest: tokens of any continuation.
          stop: texts that end a solution.
          boundary: texts that end a continuation, too; () to go on to the end of the solution.
        """
        ...


class LocalPolicy:
    """A model in this process.

    Args:
      model: its name or path.
      sampling: how to sample.
      seed: of the sampling.
      dtype: of parameters and arithmetic.
      mesh: devices over which prompts and parameters lie; None for one.
      on_written: see `OnWritten`.
    """

    def __init__(
        self, model: str, sampling: Sampling, seed: int, dtype: str = "float32", mesh: "Mesh | None" = None,
        on_written: OnWritten = lambda samples, tokens: None,
    ) -> None:  # fmt: skip
        import jax

        from prm_jax.models import Tokenizer, load_weights
        from prm_jax.models.prefixes import PrefixStore
        from prm_jax.models.sharding import rows_over, shard_params

        path = model_path(model)
        config, self.params = load_weights(path, dtype=dtype, host=mesh is not None)
        config = dataclasses.replace(config, compute_dtype=dtype)
        self.config, self.context = _with_room_behind(config, sampling), config.max_position_embeddings
        self.ways = 1
        if mesh is not None:
            self.params, self.ways = shard_params(self.params, mesh), rows_over(mesh)
        self.tokenizer = Tokenizer.load(path)
        self.sampling, self.key, self.on_written = sampling, jax.random.key(seed), on_written
        mib = sampling.reuse_mib
        if mib and mesh is not None:
            raise UserError("--sampling.reuse-mib keeps keys and values on one device: leave it out with --mesh")
        if mib is None:
            large = sum(x.size for x in jax.tree.leaves(self.params)) >= 20_000_000
            mib = 1024 if large and mesh is None else 0
        self.reuse = PrefixStore(mib << 20) if mib > 0 else None

    def __call__(
        self, prompts: Sequence[list[int]], ids: Sequence[int], count: int, *, room: Sequence[int], longest: int,
        stop: tuple[str, ...], boundary: tuple[str, ...],
    ) -> list[list[Written]]:  # fmt: skip
        """See `Policy`; as many prompts at a time as `Sampling.rows` allows, with few shapes to compile."""
        size = self._over_devices(max(1, self.sampling.rows // count))
        found: list[list[Written]] = []
        for start in range(0, len(prompts), size):
            batch = list(range(start, min(start + size, len(prompts))))
            number = len(batch)
            batch += batch[-1:] * ((size if len(prompts) > size else self._over_devices(number)) - number)
            own_prompts, own_ids, left = [prompts[i] for i in batch], [ids[i] for i in batch], [room[i] for i in batch]
            # Whole solutions are not gone on with.
            reuse = self.reuse if boundary else None
            new = self._generate(own_prompts, own_ids, left, number, count, longest, (*boundary, *stop), reuse)
            self.on_written(number * count, sum(len(one.tokens) for own in new for one in own))
            found += new
        return found

    def _over_devices(self, prompts: int) -> int:
        """The next number of prompts that the devices divide."""
        return -(-prompts // self.ways) * self.ways

    def _generate(
        self, prompts: Sequence[list[int]], ids: Sequence[int], room: Sequence[int], number: int, count: int,
        longest: int, stop: tuple[str, ...], reuse: "PrefixStore | None",
    ) -> list[list[Written]]:  # fmt: skip
        """Of the first `number` prompts; the others only fill up. What does not fit into the room is cut off."""
        import numpy as np

        from prm_jax.models import DecodeOptions, generate

        samples = generate(
            self.config, self.params, prompts, self.key, samples_per_prompt=count, max_new_tokens=longest,
            temperature=self.sampling.temperature, top_p=self.sampling.top_p, stop=stop,
            options=DecodeOptions(tokenizer=self.tokenizer, prompt_ids=ids, reuse=reuse),
        )  # fmt: skip
        tokens, mask, logp = (np.asarray(x) for x in (samples.tokens, samples.mask, samples.logp))
        rows = []
        for row in range(number * count):
            kept = np.flatnonzero(mask[row])[: room[row // count]]
            rows.append(Written(tuple(tokens[row][kept].tolist()), float(logp[row][kept].sum()), None))
        return [rows[place * count : (place + 1) * count] for place in range(number)]


def _with_room_behind(config: "ModelConfig", sampling: Sampling) -> "ModelConfig":
    """The same model with a longer context: what begins near its end is written too long, and cut off afterwards.

    Nothing that is kept lies beyond the model's own context.
    """
    tokens = max(sampling.step_tokens, sampling.max_new_tokens)
    context, scaling = config.max_position_embeddings, config.rope_scaling
    if scaling is not None and scaling.original_max_position_embeddings is None:
        scaling = dataclasses.replace(scaling, original_max_position_embeddings=context)
    return dataclasses.replace(config, max_position_embeddings=context + tokens, rope_scaling=scaling)


class ServerPolicy:
    """A model behind the completions API of a server.

    A step ends at its boundary, a solution at the end of text: where a server does not say which of the two it was, it
    is asked for more than the step, which is then cut at the boundary.

    Attributes:
      context: None; the server knows it.

    Args:
      model: of which only the tokenizer is read here.
      url: the server's address.
      connection: how to talk to it.
      sampling: how to sample.
      seed: of the sampling, for servers that take one.
      on_written: see `OnWritten`; tokens are counted where log-probabilities are asked for.
    """

    context: int | None = None

    def __init__(
        self, model: str, url: str, connection: Connection, sampling: Sampling, seed: int, on_written: OnWritten
    ) -> None:
        from prm_jax.models import Tokenizer
        from prm_jax.search.server import CompletionServer

        key = os.environ.get(connection.key_from, "") if connection.key_from else ""
        if connection.key_from and not key:
            raise UserError(f"--connection.key-from: there is no environment variable {connection.key_from!r}")
        self.tokenizer = Tokenizer.load(model_path(model))
        self.sampling, self.seed, self.as_text = sampling, seed, connection.prompts == "text"
        self.server = CompletionServer(
            url, connection.model or model, timeout=connection.timeout, retries=connection.retries,
            backoff=connection.backoff, workers=connection.workers, at_once=connection.at_once,
            logprobs=connection.logprobs, key=key,
        )  # fmt: skip
        self._told = lambda new: on_written(len(new), sum(len(one.logps or ()) for one in new))
        self._tells = True

    def __call__(
        self, prompts: Sequence[list[int]], ids: Sequence[int], count: int, *, room: Sequence[int], longest: int,
        stop: tuple[str, ...], boundary: tuple[str, ...],
    ) -> list[list[Written]]:  # fmt: skip
        """See `Policy`."""
        import numpy as np

        from prm_jax.search.server import CompletionRequest

        requests = [
            CompletionRequest(
                self._prompt(prompt), count, min(longest, left), temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                seed=int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]) >> 2,
            )
            for prompt, number, left in zip(prompts, ids, room, strict=True)
        ]  # fmt: skip
        if boundary and self._tells:
            found = self.server.complete([r._replace(stop=(*boundary, *stop)) for r in requests], self._told)
            self._tells = all(one.end != "either" for own in found for one in own)
            if self._tells:
                return [[self._stopped(one, boundary) for one in own] for own in found]
        found = self.server.complete([r._replace(stop=stop) for r in requests], self._told)
        return [[self._cut(one, boundary) for one in own] for own in found]

    def _prompt(self, ids: list[int]) -> str | list[int]:
        if not self.as_text:
            return ids
        bos = self.tokenizer.special.bos_id  # the server puts its own there
        return self.tokenizer.decode(ids[1:] if ids and ids[0] == bos else ids)

    def _stopped(self, one: "Completion", boundary: tuple[str, ...]) -> Written:
        over = one.end == "text" or (one.end == "stop" and one.matched not in boundary)
        return self._written(one.text + (one.matched or ""), _sum(one), over=over, end=one.end == "text")

    def _cut(self, one: "Completion", boundary: tuple[str, ...]) -> Written:
        ends = [one.text.index(text) + len(text) for text in boundary if text in one.text]
        if ends:
            return self._written(one.text[: min(ends)], _sum(one, min(ends)), over=False, end=False)
        over = one.end != "length"
        return self._written(one.text + (one.matched or ""), _sum(one), over=over, end=one.end in ("text", "either"))

    def _written(self, text: str, logp: float, *, over: bool, end: bool) -> Written:
        ids = self.tokenizer.encode(text) if text else []
        if b"".join(map(self.tokenizer.token_bytes, ids)).decode(errors="replace") != text:
            raise UserError(
                f"the tokenizer does not give {text[:40]!r} back as it was: its model cannot be used behind a server, "
                "because steps are tokenised one by one"
            )
        eos = self.tokenizer.special.eos_id
        return Written((*ids, eos) if end and eos is not None else tuple(ids), logp, over)


def _sum(one: "Completion", characters: int | None = None) -> float:
    """Log-probability of the tokens that begin within so many characters."""
    total, begin = 0.0, 0
    for text, logp in one.logps or ():
        total += logp if characters is None or begin < characters else 0.0
        begin += len(text)
    return total


class Engine:
    """A policy on a task: proposes steps, within the length of a solution, and reads them as text.

    Args:
      model: name or path of the policy.
      task: gives problems, step boundaries and verdicts.
      sampling: how steps are sampled.
      seed: of the sampling.
      chat: wrap prompts into the chat template.
      server: address of a server that runs the policy; empty: it runs in this process.
      connection: how to talk to the server.
      dtype: of a policy in this process, its parameters and arithmetic.
      mesh: devices over which such a policy lies; None for one.
      on_written: see `OnWritten`.

    Raises:
      UserError: a task whose steps do not end at fixed strings, or an option out of range.
    """

    def __init__(
        self, model: str, task: Any, sampling: Sampling, *, seed: int, chat: bool, server: str = "",
        connection: Connection | None = None, dtype: str = "float32", mesh: "Mesh | None" = None,
        on_written: OnWritten = lambda samples, tokens: None,
    ) -> None:  # fmt: skip
        _check_sampling(sampling, seed)
        self.task, self.sampling, self.chat = task, sampling, chat
        self.boundary = step_boundary(task.splitter)
        self.policy: Policy = (
            ServerPolicy(model, server, connection or Connection(), sampling, seed, on_written)
            if server
            else LocalPolicy(model, sampling, seed, dtype, mesh, on_written)
        )
        self.tokenizer = self.policy.tokenizer
        self.problems: Sequence[Any] = ()
        self.first = 0
        self._prompts: list[list[int]] = []

    def check_prompts(self, problems: Sequence[Any]) -> None:
        """Reads all prompts once, so that one that cannot be used is found before the work begins.

        Raises:
          UserError: a prompt that the tokenizer cannot read, or too long for the model together with its solution.
        """
        lengths = [len(self._encode(problem.prompt)) for problem in problems]
        if self.policy.context is None:
            return
        room = self.policy.context - self.sampling.max_new_tokens
        long = [i for i, length in enumerate(lengths) if length > room]
        if long:
            others = f" (as do those of {len(long) - 1} others)" if len(long) > 1 else ""
            raise UserError(
                f"{problems[long[0]].id}: its prompt of {lengths[long[0]]} tokens and a solution of "
                f"--sampling.max-new-tokens {self.sampling.max_new_tokens} exceed the model's context of "
                f"{self.policy.context} tokens{others}: lower that option, or leave such problems out"
            )

    def begin(self, problems: Sequence[Any], first: int) -> None:
        """Turns to a chunk of problems; ``first`` is the number of its first one in the whole run."""
        self.problems, self.first = problems, first
        self._prompts = [self._encode(problem.prompt) for problem in problems]

    def propose(self, asks: Sequence[Any], count: int, whole: bool) -> list[list[Any]]:
        """Steps after prefixes, or the rest of the solution; see ``language_model.ProposeFn``."""
        from prm_jax.search.language_model import Step

        found: list[list[Any]] = [[] for _ in asks]
        room = [self.sampling.max_new_tokens - len(ask.partial.tokens) for ask in asks]
        going = [i for i, left in enumerate(room) if left > 0]
        if not going:
            return found
        written = self.policy(
            [self._prompts[asks[i].partial.question] + list(asks[i].partial.tokens) for i in going],
            # Problem and stream choose the random numbers: not the chunk, nor what else is in it.
            [(self.first + asks[i].partial.question) * STREAMS + asks[i].stream for i in going],
            count, room=[room[i] for i in going],
            longest=self.sampling.max_new_tokens if whole else self.sampling.step_tokens,
            stop=tuple(self.task.stop), boundary=() if whole else self.boundary,
        )  # fmt: skip
        for i, own in zip(going, written, strict=True):
            for one in own:
                tokens = one.tokens[: room[i]]
                over = self._ends(tokens) if one.over is None else one.over
                found[i].append(Step(tokens, one.logp, whole or over or not tokens or len(tokens) >= room[i]))
        return found

    def complete(self, partial: Any) -> bool:
        """The solution came to its own end: it was not cut off for its length or number of steps."""
        return partial.finished and len(partial.tokens) < self.sampling.max_new_tokens or self._ends(partial.tokens)

    def text(self, partial: Any) -> str:
        """The response that a prefix stands for, without special tokens."""
        return self.tokenizer.decode(list(partial.tokens), skip_special=True)

    def split(self, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The token ids of each step of a response."""
        import numpy as np

        from prm_jax.data.steps import step_ids_from_text

        if not tokens:
            return []
        row = np.array([tokens])
        ids, _, _ = step_ids_from_text(
            row, np.ones_like(row, bool), self.tokenizer.token_bytes, self.task.splitter,
            special_ids=self.tokenizer.special_ids,
        )  # fmt: skip
        return [tuple(row[0][ids[0] == step].tolist()) for step in range(int(ids.max()) + 1)]

    def record(self, partial: Any, name: str = "") -> Any:
        """A prefix as step data; None while it has no step that is not blank."""
        from prm_jax.data.step_data import StepRecord

        text = self.text(partial)
        steps = tuple(text[start:end] for start, end in self.task.splitter(text))
        problem = self.problems[partial.question]
        return StepRecord(problem.prompt, steps, None, None, problem.id, name or problem.id) if steps else None

    def answer(self, partial: Any) -> str | None:
        """What a solution answers, so that equal answers are equal texts; None for none.

        It is read where the task's verifier reads it, or else wherever an answer may stand. Numbers have one form.
        """
        from prm_jax.verifiers.extraction import ANSWER_MARKERS, find_answer
        from prm_jax.verifiers.number_text import parse_number

        text, verifier = self.text(partial), getattr(self.task, "verifier", None)
        own = getattr(verifier, "extract", None)
        found = find_answer(text, own, markers=getattr(verifier, "markers", ANSWER_MARKERS)) if own else None
        markers = (*self.task.splitter.answer_markers, *ANSWER_MARKERS)
        found = found or find_answer(text, "marker", markers=markers) or find_answer(text, "boxed")
        found = found or find_answer(text, "last_number")
        if found is None:
            return None
        number = parse_number(found)
        return str(number) if number is not None else " ".join(found.split())

    def _ends(self, tokens: tuple[int, ...]) -> bool:
        if not tokens or tokens[-1] in self.tokenizer.eos_ids:
            return True
        text = self.tokenizer.decode(list(tokens), skip_special=True)
        return any(stop in text for stop in self.task.stop)

    def _encode(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str) and not self.chat:
            return list(self.tokenizer.encode(prompt, add_special=True))
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids: Any = messages if isinstance(messages[0], int) else self.tokenizer.chat(list(messages))
        return list(ids)


def _check_sampling(sampling: Sampling, seed: int) -> None:
    if min(sampling.step_tokens, sampling.max_new_tokens, sampling.rows) < 1:
        raise UserError("--sampling.step-tokens, --sampling.max-new-tokens and --sampling.rows must be at least 1")
    if not 0.0 <= sampling.temperature < math.inf:
        raise UserError(f"--sampling.temperature is {sampling.temperature}: give a finite number >= 0")
    if not 0.0 < sampling.top_p <= 1.0:
        raise UserError(f"--sampling.top-p is {sampling.top_p}: give a number in (0, 1]")
    if sampling.reuse_mib is not None and sampling.reuse_mib < 0:
        raise UserError(f"--sampling.reuse-mib is {sampling.reuse_mib}: give the memory in MiB, 0 for none")
    if not 0 <= seed < 1 << 32:  # beyond, other seeds have the same random numbers
        raise UserError(f"--seed is {seed}: give a whole number in [0, 2**32)")


def step_boundary(splitter: Any) -> tuple[str, ...]:
    """The strings at which a step ends.

    Raises:
      UserError: the splitter does not cut at fixed strings.
    """
    if splitter.boundaries is None:
        raise UserError(
            f"this task cuts steps by {splitter.how!r}; search needs steps that end at fixed strings: newline, "
            "blank or tag"
        )
    return tuple(splitter.boundaries)


def tell_notes(task: Any) -> None:
    """Says what a user should know about the task's files: lines left out, prompts that occur twice."""
    for note in getattr(task, "notes", ()):
        print_warning(note)


def settings_of(options: Any) -> dict[str, Any]:
    """The options that determine results: of a server, what it runs and how it is asked, not where it is."""
    plain = dataclasses.asdict(options)
    connection = plain.pop("connection")
    if plain.pop("server"):
        plain["server"] = {name: connection[name] for name in ("model", "prompts", "logprobs")}
    return plain
