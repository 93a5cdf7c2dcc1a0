"""Hands new weights to a server: adapters, whole weights, or a restart with another file; and probes the result."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import jax
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.logprobs import token_logprobs
from prm_jax.models.lora import merge, split
from prm_jax.rollouts.dialects import Served
from prm_jax.rollouts.remote_server import RemoteServer
from prm_jax.rollouts.server_client import UnreachableError

Precision = Literal["float32", "bfloat16", "quantized"]

THRESHOLDS: dict[Precision, float] = {"float32": 0.02, "bfloat16": 0.05, "quantized": 0.5}
"""Mean difference of log-probabilities per token that a server of this precision may show."""


class WeightUpdates(Protocol):
    """How a server gets new weights."""

    def publish(self, params: Any, version: int, server: RemoteServer) -> Served:
        """Gives the server the weights; returns once it answers with them.

        Raises:
          UserError: they cannot be written, or the server does not accept them.
        """
        ...

    def close(self) -> None:
        """Ends what was started for it."""
        ...


@dataclasses.dataclass
class Folder:
    """A folder that this process and the server see.

    Attributes:
      path: here.
      seen_as: its path on the server; None for the same.
      keep: number of newest versions that are kept.
    """

    path: pathlib.Path
    seen_as: pathlib.Path | None = None
    keep: int = 2

    def on_server(self, name: str) -> str:
        """The path on the server of an entry of the folder."""
        return str((self.seen_as or self.path.absolute()) / name)

    def fresh(self, name: str) -> pathlib.Path:
        """The path of an entry that an interrupted run may have left; it is removed."""
        path = self.path / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def remove(self, name: str) -> None:
        """Removes an old version."""
        path = self.path / name
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


class AdapterUpdates:
    """Adapters in PEFT's format, ``policy-<version>``, loaded while the server runs; vLLM and SGLang.

    Args:
      config: the model.
      folder: where adapters are written.
      base: the base model's path or name, recorded in the adapter.
    """

    def __init__(self, config: ModelConfig, folder: Folder, *, base: str = "") -> None:
        self._config, self._folder, self._base = config, folder, base
        self._loaded: list[str] = []

    def publish(self, params: Any, version: int, server: RemoteServer) -> Served:
        """See `WeightUpdates`."""
        from prm_jax.models.peft_export import save_adapter

        name = f"policy-{version}"
        call, dialect = server.client.call, server.dialect
        save_adapter(self._folder.fresh(name), self._config, params, base=self._base)
        place = self._folder.on_server(name)
        try:
            served = dialect.load_adapter(call, name, place)
        except UnreachableError:
            raise
        except UserError:  # an earlier run may have loaded an adapter of this name
            with contextlib.suppress(UserError):
                dialect.unload_adapter(call, name)
            served = dialect.load_adapter(call, name, place)
        self._loaded = [one for one in self._loaded if one != name] + [name]
        while len(self._loaded) > self._folder.keep:
            old = self._loaded.pop(0)
            dialect.unload_adapter(call, old)
            self._folder.remove(old)
        model = server.served.model
        return dataclasses.replace(served, model=served.model or model)

    def close(self) -> None:
        """Nothing."""


class FullUpdates:
    """Whole weights as a Hugging Face directory ``v<version>``, read by the running server; vLLM and SGLang.

    The name ``current`` in the folder leads to the newest version. vLLM reloads from the path that it was started with,
    so start it with this name.

    Args:
      config: the model.
      tokenizer: written beside the weights.
      folder: where versions are written.
      dtype: of the files.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: Any, folder: Folder, *, dtype: Literal["float32", "bfloat16"]
    ) -> None:
        self._config, self._tokenizer, self._folder, self._dtype = config, tokenizer, folder, dtype
        self._written: list[str] = []

    def publish(self, params: Any, version: int, server: RemoteServer) -> Served:
        """See `WeightUpdates`."""
        name = self.write(params, version)
        place = self._folder.on_server("current" if server.dialect.name == "vllm" else name)
        served = server.dialect.load_weights(server.client.call, place, version)
        self._written = [one for one in self._written if one != name] + [name]
        while len(self._written) > self._folder.keep:
            self._folder.remove(self._written.pop(0))
        return dataclasses.replace(served, model=served.model or server.served.model)

    def write(self, params: Any, version: int) -> str:
        """Writes a version and makes it current; returns its name in the folder."""
        from prm_jax.models.weights_writing import save_weights

        name = f"v{version}"
        whole = _whole(self._config, params)
        save_weights(self._folder.fresh(name), self._config, whole, tokenizer=self._tokenizer, dtype=self._dtype)
        link = self._folder.path / f".current.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        os.replace(link, self._folder.path / "current")
        return name

    def close(self) -> None:
        """Nothing."""


class RestartUpdates:
    """A GGUF file ``policy-v<version>.gguf`` with which the server is started again; llama.cpp.

    Args:
      config: the model.
      folder: where files are written.
      like: GGUF file of the same model, which gives the tokenizer.
      restart: called with the new file's path on the server; returns the address of a server that has loaded it.
      dtype: of the file's matrices.
    """

    def __init__(
        self,
        config: ModelConfig,
        folder: Folder,
        *,
        like: str | pathlib.Path,
        restart: Callable[[str], str],
        dtype: Literal["float32", "float16"] = "float16",
    ) -> None:
        self._config, self._folder, self._like, self._dtype = config, folder, like, dtype
        self._restart = restart
        self._written: list[str] = []

    def start(self, params: Any, version: int) -> str:
        """Writes a version and starts a server with it; returns its address."""
        from prm_jax.models.gguf_export import save_gguf

        name = f"policy-v{version}.gguf"
        save_gguf(
            self._folder.path / name, self._config, _whole(self._config, params), like=self._like, dtype=self._dtype
        )
        self._written = [one for one in self._written if one != name] + [name]
        return self._restart(self._folder.on_server(name))

    def publish(self, params: Any, version: int, server: RemoteServer) -> Served:
        """See `WeightUpdates`."""
        url, name = self.start(params, version), f"policy-v{version}.gguf"
        server.reconnect(url)
        if server.info.label != name:
            raise UserError(
                f"the server at {url} was started again and has the model {server.info.label!r} instead of {name!r}: "
                "the command of --rollout.server.restart must start it with {model}"
            )
        while len(self._written) > self._folder.keep:
            self._folder.remove(self._written.pop(0))
        return Served("", label=name)

    def close(self) -> None:
        """Ends the server, if `restart` has a method for that."""
        close = getattr(self._restart, "close", None)
        if close is not None:
            close()


@dataclasses.dataclass
class Probe:
    """Compares the server's log-probabilities with the trainer's, after an update.

    This finds weights that did not arrive, log-probabilities at another temperature, and prompts that the server
    changes.

    Attributes:
      config: the model.
      prompts: token ids of a few fixed prompts; a response to each is sampled.
      precision: of the server's weights.
      max_new_tokens: length of the responses.
      difference: of the last check, in nats per token.
    """

    config: ModelConfig
    prompts: Sequence[tuple[int, ...]]
    precision: Precision = "bfloat16"
    max_new_tokens: int = 32
    difference: float = float("nan")

    def check(self, params: Any, responses: Sequence[Any], *, temperature: float, other: float, where: str) -> None:
        """Re-scores responses.

        Args:
          params: the policy's whole parameters, as the server should have them.
          responses: to `prompts`, with the server's log-probabilities.
          temperature: of these log-probabilities, as the dialect has it.
          other: the temperature of the other convention, for the message.
          where: the server.

        Raises:
          UserError: the mean difference exceeds the threshold of `precision`, or there are no log-probabilities.
        """
        if any(one.server_logp is None for one in responses):
            raise UserError(
                f"{where} sent no log-probabilities, so that its weights cannot be checked: leave "
                "--connection.no-logprobs out, or set --rollout.server.probe 0"
            )
        theirs = np.concatenate([one.server_logp for one in responses])
        self.difference = self._difference(params, responses, theirs, temperature)
        limit = THRESHOLDS[self.precision]
        if self.difference <= limit:  # NaN fails
            return
        message = (
            f"the log-probabilities of {where} differ from the policy's by {self.difference:.3g} per token on average "
            f"over {len(theirs)} tokens of {len(responses)} responses; expected at most {limit:g} for "
            f"{self.precision} weights (--rollout.server.precision)"
        )
        if other != temperature and self._difference(params, responses, theirs, other) <= limit:
            raise UserError(
                f"{message}: they are at temperature {other:g}, not {temperature:g}; set --connection.logprobs-at "
                f"{'one' if other == 1 else 'sampling'}"
            )
        raise UserError(f"{message}: the server has other weights, or its log-probabilities are at another temperature")

    def _difference(self, params: Any, responses: Sequence[Any], theirs: np.ndarray, temperature: float) -> float:
        longest = max(map(len, self.prompts)) + self.max_new_tokens
        tokens = np.zeros((len(responses), longest), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, (prompt, one) in enumerate(zip(self.prompts, responses, strict=True)):
            end = len(prompt) + len(one.tokens)
            tokens[row, : len(prompt)], tokens[row, len(prompt) : end] = prompt, one.tokens
            mask[row, len(prompt) : end] = True
        logp = _score(self.config, params, tokens, mask, temperature=temperature or 1.0)
        return float(np.abs(np.asarray(logp)[mask] - theirs).mean())


@functools.partial(jax.jit, static_argnames=("config", "temperature"))
def _score(config: ModelConfig, params: Any, tokens: jax.Array, mask: jax.Array, *, temperature: float) -> jax.Array:
    return token_logprobs(config, params, tokens, mask, temperature=temperature)


def _whole(config: ModelConfig, params: Any) -> Any:
    """The parameters with adapters merged."""
    return merge(config, params) if split(params)[1] else params
