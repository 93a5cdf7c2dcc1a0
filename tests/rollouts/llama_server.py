"""llama.cpp's server in this process, by the package xllamacpp."""

import gc
from typing import Any

import jax
import pytest

from prm_jax.models import load_weights
from prm_jax.models.gguf_export import save_gguf


class Server:
    """Starts again with every file that it is called with, and returns the server's address."""

    def __init__(self) -> None:
        self.running: Any = None
        self.files: list[str] = []

    def __call__(self, path: str) -> str:
        xllamacpp = pytest.importorskip("xllamacpp")
        self.close()
        self.files.append(path)
        options = xllamacpp.CommonParams()
        options.model.path = path
        options.n_ctx, options.n_parallel, options.cpuparams.n_threads, options.port = 2048, 4, 1, 0
        options.verbosity = 0
        self.running = xllamacpp.Server(options)
        return self.running.listening_address

    def close(self) -> None:
        self.running = None
        gc.collect()


def with_noise(params: Any, share: float) -> Any:
    return jax.tree.map(
        lambda x: x * (1 + share * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)), params
    )


SERVER = Server()


def restart(path: str) -> str:
    """For ``--rollout.server.restart``."""
    return SERVER(path)


def restart_with_other_weights(path: str) -> str:
    """The same, but from the second file on the server has other weights under the file's name."""
    if SERVER.files:
        config, params = load_weights(path, dtype="float32")
        save_gguf(path, config, with_noise(params, 0.05), like=path)
    return SERVER(path)
