"""Options of sampling, as the command line shows them."""

import math
from dataclasses import dataclass
from typing import Literal

from prm_jax.errors import UserError


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

    temperature: float = 1.0
    """Sampling temperature; 0 is greedy decoding."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this share of the probability mass."""
    step_tokens: int = 64
    """Maximum length of a step, in tokens."""
    max_new_tokens: int = 256
    """Maximum length of a solution, in tokens."""
    rows: int = 64
    """Maximum number of sequences generated at once (without --server); all samples of one prefix run together, even if
    there are more."""
    reuse_mib: int | None = None
    """Memory in MiB for keys and values of earlier calls, so that prefixes are not read again at every step; 0 disables
    it. Default: 1024 for models of at least 20 million parameters and 0 for smaller ones, where it does not pay
    (without --server; on one device)."""

    def sampling(self) -> SamplingOptions:
        """What an engine needs of these."""
        return SamplingOptions(self.temperature, top_p=self.top_p)

    def check(self, prefix: str = "--sampling.") -> None:
        """Checks the ranges.

        Args:
          prefix: how the command line names the options.

        Raises:
          UserError: an option is out of range.
        """
        for name in ("step_tokens", "max_new_tokens", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{prefix}{name.replace('_', '-')} must be at least 1, found {getattr(self, name)}")
        if not 0.0 <= self.temperature < math.inf:
            raise UserError(f"{prefix}temperature is {self.temperature}: give a finite number >= 0")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"{prefix}top-p is {self.top_p}: give a number in (0, 1]")
        if self.reuse_mib is not None and self.reuse_mib < 0:
            raise UserError(f"{prefix}reuse-mib is {self.reuse_mib}: give the memory in MiB, 0 for none")


@dataclass(frozen=True)
class Connection:
    """How to talk to the server given by --server."""

    model: str = ""
    """Name of the model on the server; empty: the name given here."""
    any_model: bool = False
    """Accept answers in which the server names a different model."""
    prompts: Literal["text", "tokens"] = "text"
    """Send prompts as text or as token ids, for servers that accept these."""
    logprobs: bool = True
    """Request log-probabilities; without them the scorer logp is unavailable and the priors of a tree are equal."""
    at_once: int = 0
    """Maximum number of completions per request, 0: all; use 1 for servers that return one at a time, and for llama.cpp
    its number of slots."""
    workers: int = 16
    """Maximum number of concurrent requests."""
    timeout: float = 300.0
    """Seconds to wait for a complete answer."""
    retries: int = 4
    """How often a request is repeated when the server is busy, fails, or closes the connection."""
    backoff: float = 0.5
    """Seconds before the first repetition; doubled for each further one."""
    key_from: str = ""
    """Environment variable that holds the server's API key, if it needs one."""
