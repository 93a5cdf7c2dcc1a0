"""A trace of one training step, for Perfetto."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax

from prm_jax.errors import UserError

TRACE = "step.perfetto.json.gz"
"""Name of the file."""


@contextlib.contextmanager
def trace_into(directory: pathlib.Path) -> Iterator[None]:
    """Records what host and devices do inside the block into ``directory/step.perfetto.json.gz``.

    The file opens at https://ui.perfetto.dev, which reads it in the browser. The same folder gets the file that XProf
    and TensorBoard read.

    Raises:
      UserError: another trace is being recorded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            jax.profiler.start_trace(scratch, create_perfetto_trace=True)
        except RuntimeError as error:
            raise UserError(f"no trace can be recorded (--profile): {error}") from error
        try:
            yield
        finally:
            jax.profiler.stop_trace()
        directory.mkdir(parents=True, exist_ok=True)
        for path in pathlib.Path(scratch).rglob("*"):
            if path.name == "perfetto_trace.json.gz":
                shutil.copyfile(path, directory / TRACE)
            elif path.name.endswith(".xplane.pb"):
                shutil.copyfile(path, directory / path.name)


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """A named stretch of host time in a trace; costs nothing where none is recorded."""
    with jax.profiler.TraceAnnotation(name):
        yield
