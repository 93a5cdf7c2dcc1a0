"""Options of sampling, as the command line shows them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from prm_jax.errors import UserError
from prm_jax.option_ranges import at_least, check_ranges, within


@dataclass(frozen=True)
class SamplingOptions:
    """How an engine chooses tokens.

    Attributes:
      temperature: >= 0; 0 is greedy decoding.
      top_k: keep the k most probable tokens; 0 keeps all.
      top_p: keep the smallest set of tokens with this share of the probability mass; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class StepOptions:
    """How steps are sampled."""

    temperature: Annotated[float, at_least(0)] = 1.0
    """Sampling temperature; 0 is greedy decoding."""
    top_p: Annotated[float, within(0, 1, low_open=True)] = 1.0
    """Sample from the smallest set of tokens with this share of the probability mass."""
    step_tokens: Annotated[int, at_least(1)] = 64
    """Maximum length of a step, in tokens."""
    max_new_tokens: Annotated[int, at_least(1)] = 256
    """Maximum length of a solution, in tokens."""
    rows: Annotated[int, at_least(1)] = 64
    """Maximum number of sequences generated at once (without --server); with batches all samples of one prefix run
    together, even if there are more."""
    engine: Literal["auto", "batches", "slots"] = "auto"
    """How sequences share the model (without --server): in slots that take the next sequence when one ends, or in
    batches that last as long as their longest sequence. The samples are the same. auto: slots for whole
    solutions, rollouts and environments, batches for other searches step by step and with --mesh.fsdp."""
    reuse_mib: Annotated[int | None, at_least(0)] = None
    """Memory in MiB for keys and values of earlier calls, so that prefixes are not read again at every step; 0 disables
    it. Default: 1024 for models of at least 20 million parameters and 0 for smaller ones, where it does not pay
    (without --server; on one device; with batches)."""

    def sampling(self) -> SamplingOptions:
        """What an engine needs of these."""
        return SamplingOptions(self.temperature, top_p=self.top_p)

    def check(self, prefix: str = "sampling.") -> None:
        """Checks the ranges.

        Args:
          prefix: of the options' names on the command line.

        Raises:
          UserError: an option is out of range.
        """
        problems = check_ranges(self, prefix)
        if problems:
            raise UserError("\n".join(problems))


@dataclass(frozen=True)
class Connection:
    """How to talk to the server given by --server."""

    model: str = ""
    """Name of the model on the server; empty: the name given here."""
    dialect: Literal["auto", "vllm", "sglang", "llama.cpp", "text"] = "auto"
    """Kind of server. vllm, sglang and llama.cpp exchange token ids; text: any other server with the completions
    API; auto: detected."""
    any_model: bool = False
    """Accept answers in which the server names a different model."""
    prompts: Literal["text", "tokens"] = "text"
    """Send prompts as text or as token ids, for servers that accept these (dialect text)."""
    logprobs: bool = True
    """Request log-probabilities; without them the scorer logp is unavailable and the priors of a tree are equal."""
    logprobs_at: Literal["default", "one", "sampling"] = "default"
    """The temperature of the server's log-probabilities. one: 1 whatever the sampling temperature; sampling: that of
    the sampling; default: the dialect's, which is sampling for sglang and one for the others."""
    at_once: Annotated[int, at_least(0)] = 0
    """Maximum number of completions per request, 0: all; use 1 for servers that return one at a time (dialect text)."""
    workers: Annotated[int, at_least(1)] = 16
    """Maximum number of concurrent requests."""
    timeout: Annotated[float, within(0, 86400, low_open=True)] = 300.0
    """Seconds to wait for a complete answer."""
    retries: Annotated[int, at_least(0)] = 4
    """How often a request is repeated when the server is busy, fails, or closes the connection."""
    backoff: Annotated[float, within(0, 86400)] = 0.5
    """Seconds before the first repetition; doubled for each further one."""
    patience: Annotated[float, within(0, 86400)] = 60.0
    """Seconds to wait for a server that has answered before and cannot be reached, while it restarts for example."""
    key_from: str = ""
    """Environment variable that holds the server's API key, if it needs one."""
