"""The server of a run: connected once, and given new weights, keys and temperatures between uses."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.config import ModelConfig
from prm_jax.models.hub import find_model
from prm_jax.resolve import resolve
from prm_jax.rollouts.engine import EngineStats
from prm_jax.rollouts.remote import RemoteEngine, warn
from prm_jax.rollouts.remote_server import RemoteServer
from prm_jax.rollouts.sampling_options import Connection, SamplingOptions
from prm_jax.rollouts.server_options import ServerOptions
from prm_jax.rollouts.server_process import ServerProcess
from prm_jax.rollouts.weight_updates import (
    AdapterUpdates,
    Folder,
    FullUpdates,
    Probe,
    RestartUpdates,
    WeightUpdates,
)


class RemoteSource:
    """An ``EngineSource`` of one `RemoteEngine`.

    Weights that differ from those of the last use are handed to the server, and probed.

    Args:
      url: the server's address.
      config: the model.
      tokenizer: of the model.
      stop: strings that end a response.
      options: how the server gets weights.
      connection: how to talk to it.
      probe_prompts: token ids of prompts for the probe.
      model_path: path of the run's initial model, for `ServerOptions.like` and adapters.
      adapters: the policy has adapters.
      say: gets one-line warnings.

    Raises:
      UserError: options that cannot work together, no server, or one that cannot be used.
    """

    def __init__(
        self,
        url: str,
        config: ModelConfig,
        tokenizer: Any,
        stop: Sequence[str],
        *,
        options: ServerOptions,
        connection: Connection = Connection(),
        probe_prompts: Sequence[Sequence[int]] = (),
        model_path: str = "",
        adapters: bool = False,
        say: Callable[[str], None] = warn,
    ) -> None:
        if connection.dialect == "text":
            raise UserError("training needs a server that exchanges token ids: --connection.dialect text does not")
        self._url, self._config, self._tokenizer, self._stop = url, config, tokenizer, tuple(stop)
        self._options, self._connection, self._say = options, connection, say
        self._updates = _make_updates(url, config, tokenizer, options, model_path, adapters=adapters)
        if not isinstance(self._updates, RestartUpdates):  # a wrong server must not be found after hours of warm start
            RemoteServer(url, options.model, tokenizer, connection=connection, say=lambda text: None)
        self._probe: Probe | None = None
        if options.probe and probe_prompts:
            prompts = [tuple(prompt) for prompt in probe_prompts[: options.probe]]
            self._probe = Probe(config, prompts, options.precision)
        self._engine: RemoteEngine | None = None
        self._leaves: list[Any] = []
        self._seconds = 0.0

    @property
    def streams(self) -> bool:
        """See ``EngineSource``."""
        return True

    @property
    def ordered(self) -> bool:
        """See ``EngineSource``: batches on the server depend on time in any case."""
        return False

    def prepare(self, params: Any, sampling: SamplingOptions) -> RemoteEngine:
        """See ``EngineSource``.

        Raises:
          UserError: see `RemoteEngine`.
        """
        leaves = jax.tree.leaves(params)
        same = len(leaves) == len(self._leaves) and all(a is b for a, b in zip(leaves, self._leaves, strict=True))
        begun = time.monotonic()
        if self._engine is None:
            self._engine = self._connect(params, sampling)
            if isinstance(self._updates, RestartUpdates):  # it was started with these weights
                self._engine.check_weights(params)
                same, self._leaves = True, leaves
                self._seconds += time.monotonic() - begun
        elif sampling != self._engine.sampling:
            self._engine.draw_with(self._engine.seed, sampling)
        if not same:
            self._engine.update(params, self._engine.version + 1)
            self._seconds += time.monotonic() - begun
            self._leaves = leaves
        return self._engine

    def draw_with(self, key: jax.Array) -> None:
        """See ``EngineSource``."""
        assert self._engine is not None, "prepare the engine first"
        words = np.asarray(jax.random.key_data(key)).ravel().tolist()
        self._engine.draw_with(int.from_bytes(np.array(words, np.uint32).tobytes(), "little"))

    def release(self) -> None:
        """See ``EngineSource``: nothing of the engine is in this process."""

    def stats(self) -> EngineStats:
        """See ``EngineSource``."""
        return EngineStats() if self._engine is None else self._engine.stats()

    def metrics(self) -> dict[str, float]:
        """See ``EngineSource``: the seconds that updates took, and the difference that the last probe found."""
        seconds, self._seconds = self._seconds, 0.0
        found = {"rollout/server_update_seconds": seconds}
        if self._probe is not None and np.isfinite(self._probe.difference):
            found["rollout/server_difference"] = self._probe.difference
        return found

    def _connect(self, params: Any, sampling: SamplingOptions) -> RemoteEngine:
        url = self._url
        if isinstance(self._updates, RestartUpdates):  # there is no server yet, or one with other weights
            url = self._updates.start(params, 0)
        return RemoteEngine(
            url, self._options.model, self._tokenizer, connection=self._connection, sampling=sampling,
            stops=(self._stop,), weights=self._updates, probe=self._probe, say=self._say,
        )  # fmt: skip


def _make_updates(
    url: str, config: ModelConfig, tokenizer: Any, options: ServerOptions, model_path: str, *, adapters: bool
) -> WeightUpdates:
    if not options.folder:
        raise UserError(
            f"the server {url} needs a folder for the policy's weights, which it must see too: give "
            "--rollout.server.folder"
        )
    seen_as = pathlib.Path(options.folder_on_server) if options.folder_on_server else None
    folder = Folder(pathlib.Path(options.folder), seen_as)
    kind = options.weights
    if kind == "auto":
        kind = "restart" if options.restart else "adapter" if adapters else "full"
    if kind == "adapter":
        if not adapters:
            raise UserError("--rollout.server.weights adapter: the policy has no adapters; give --model.lora-rank")
        return AdapterUpdates(config, folder, base=model_path)
    if kind == "full":
        dtype = "float32" if options.precision == "float32" else "bfloat16"
        return FullUpdates(config, tokenizer, folder, dtype=dtype)  # type: ignore[arg-type]
    like = options.like or model_path
    if like and not like.endswith(".gguf"):
        like = str(find_model(like))
    if not options.restart or not like.endswith(".gguf"):
        raise UserError(
            f"--rollout.server.weights restart needs --rollout.server.restart (found {options.restart!r}), and a GGUF "
            f"file of the same model as --rollout.server.like or --model.path (found {like!r})"
        )
    return RestartUpdates(
        config, folder, like=like, restart=_make_restart(options, url),
        dtype="float32" if options.precision == "float32" else "float16",
    )  # fmt: skip


def _make_restart(options: ServerOptions, url: str) -> Callable[[str], str]:
    if "{" in options.restart or " " in options.restart:
        log = pathlib.Path(options.folder) / "server.log"
        return ServerProcess(options.restart, url, log=log, seconds=options.start_seconds)
    empty: dict[str, Callable[[str], str]] = {}
    return resolve(options.restart, empty, "restart", option="rollout.server.restart")
