"""Checkpoints: a thin wrapper around orbax with integrity checks.

Orbax commits each step atomically, but it silently loads flipped bytes, casts dtypes and trusts stray directories,
and it never falls back to an older step. This wrapper stores a flat dict of named arrays together with a JSON document
that holds the shape, dtype and fingerprint of every leaf, and verifies each restore against it.
"""

import errno
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from prm_jax.errors import StorageError, UserError
from prm_jax.pytree_paths import named_leaves
from prm_jax.runs import checkpoint_document as documents
from prm_jax.runs import integrity, processes
from prm_jax.runs.host_memory import typed

PyTree = Any
_STATE, _META = "state", "meta"
_TRASH, _ASIDE = "trash", "set_aside"
_LOG = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint cannot be written or read, or does not match what it is restored to."""


class CheckpointWriteError(CheckpointError, StorageError):
    """A checkpoint could not be written; the earlier ones are intact."""


class _DamagedError(Exception):
    """One step is unreadable or fails verification; an older step may still be good."""


@dataclass(frozen=True)
class Restored:
    """The contents of a checkpoint.

    Attributes:
      step: the step under which it was saved.
      state: pytree with the target's structure, dtypes and shardings.
      metadata: the JSON document passed to ``save``.
      versions: versions of the libraries that wrote it.
    """

    step: int
    state: PyTree
    metadata: dict[str, Any]
    versions: dict[str, str]


class Checkpointer:
    """Saves a pytree of arrays plus JSON metadata under integer steps, and restores the newest good step.

    Use it as a context manager, or call ``close`` at the end. With several JAX processes every call is collective.
    ``directory`` holds one folder per step, ``trash/`` (steps that are being deleted) and ``set_aside/`` (damaged or
    incomplete steps, kept for inspection).
    """

    def __init__(self, directory: str | pathlib.Path, *, max_to_keep: int = 2, read_only: bool = False) -> None:
        """Opens a directory of checkpoints.

        Args:
          directory: created if missing, unless ``read_only``.
          max_to_keep: number of steps to keep; with at least 2, a good one remains when the newest is damaged.
          read_only: never write, move or delete anything.

        Raises:
          CheckpointError: the directory is missing (``read_only``) or cannot be written.
        """
        self.directory = pathlib.Path(directory).absolute()
        self._read_only = read_only
        self._saving: int | None = None
        self._manager: Any = None
        if max_to_keep < 1:
            raise CheckpointError(f"max_to_keep is {max_to_keep}; it must be at least 1")
        if read_only:
            if not self.directory.is_dir():
                raise CheckpointError(f"no checkpoints: {self.directory} is not a directory")
        else:
            self._prepare()
        self._manager = ocp.CheckpointManager(self.directory, options=_options(max_to_keep, read_only))

    def steps(self) -> list[int]:
        """Complete steps on disk in ascending order, as process 0 sees them; damage is detected only by ``restore``."""
        return processes.broadcast_from_first(self._steps_here(), name="steps of checkpoints")

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: PyTree, metadata: Mapping[str, Any] | None = None, *, wait: bool = False) -> bool:
        """Starts writing a step in the background.

        The state is copied before this returns, so its buffers may be donated to the next step.

        Args:
          step: non-negative; must be greater than every step already saved.
          state: pytree whose leaves are arrays (typed PRNG keys included) with any sharding.
          metadata: JSON-serialisable mapping for everything that is not an array: cursors, counters, hashes.
          wait: return only when the step is committed.

        Returns:
          False if this step exists already (nothing is written), otherwise True.

        Raises:
          CheckpointWriteError: this write or an earlier background write failed, for instance because the disk is full.
          TypeError: a leaf is not an array, or the metadata is not JSON.
        """
        if step == self._saving or step in self.steps():
            return False
        self.wait()  # orbax would wait as well, but report the earlier step's failure as that of this one
        self._empty_trash()
        leaves = documents.checked_leaves(state)
        document = documents.describe(step, leaves, metadata or {})
        arrays = {name: documents.plain(leaf) for name, leaf in leaves.items() if leaf.size}
        # Orbax refuses an empty tree; a state without elements consists of its document only.
        arrays = arrays or {"(empty)": jnp.zeros((1,), jnp.uint8)}
        args = ocp.args.Composite(**{_STATE: ocp.args.PyTreeSave(arrays), _META: ocp.args.JsonSave(document)})
        self._saving = step
        try:
            accepted = self._manager.save(step, args=args)
        except Exception as error:
            raise self._save_error(error) from error
        if not accepted:
            raise CheckpointError(f"step {step} is not after step {self.latest_step()}, the newest in {self.directory}")
        if wait:
            self.wait()
        return True

    def wait(self) -> None:
        """Blocks until the step being written is committed; raises CheckpointWriteError if the write failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(error) from error
        self._saving = None

    def restore(
        self,
        target: PyTree,
        *,
        step: int | None = None,
        partial: bool = False,
        accept: Callable[[PyTree], str] | None = None,
    ) -> Restored | None:
        """Restores the newest undamaged step, or a given step.

        Args:
          target: pytree of arrays or ``jax.ShapeDtypeStruct`` that defines structure, shapes, dtypes and shardings;
            the devices may differ from those that saved. Leaves without a sharding are placed on the first device.
          step: restore exactly this step, without falling back to an older one. Unless read-only, later steps are set
            aside, so that training can continue from here.
          partial: allow the checkpoint to hold more leaves than the target.
          accept: returns the reason why a restored state must not be used, or ""; a rejected step counts as damaged.

        Returns:
          The restored contents, or None if there is no checkpoint.

        Raises:
          CheckpointError: the target does not match (the first five differences are listed; nothing is ever cast), or
            every step is damaged. Nothing on disk is changed in either case.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        if step is not None and step not in self.steps():
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}; there are {self.steps()}")
        damage: dict[int, str] = {}
        for candidate in candidates:
            try:
                restored = self._read(candidate, target, partial)
                complaint = accept(restored.state) if accept is not None else ""
                if complaint:
                    raise _DamagedError(complaint)
            except _DamagedError as error:
                damage[candidate] = str(error)
                _LOG.warning("checkpoint of step %d is damaged: %s", candidate, error)
                continue
            superseded = [s for s in self.steps() if s > candidate and s not in damage]
            self._set_aside({**dict.fromkeys(damage, "damaged"), **dict.fromkeys(superseded, "superseded")})
            return restored
        if damage:
            listed = "\n".join(f"  step {s}: {reason}" for s, reason in damage.items())
            raise CheckpointError(
                f"no usable checkpoint in {self.directory}:\n{listed}\nNothing was changed there. Restore the folder "
                "from a backup, or start a new run"
            )
        return None

    def discard_after(self, step: int) -> None:
        """Sets the steps after `step` aside, for example those of a run that is resumed from an earlier one."""
        self._set_aside(dict.fromkeys([found for found in self.steps() if found > step], "superseded"))

    def read_metadata(self, step: int | None = None) -> dict[str, Any]:
        """Reads the metadata of a step (default: the newest) without its arrays.

        Raises:
          CheckpointError: there is no such step, or its document is damaged.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self.steps():
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}; there are {self.steps()}")
        try:
            return self._read_document(step)["metadata"]
        except _DamagedError as error:
            raise CheckpointError(f"checkpoint of step {step} in {self.directory}: {error}") from error

    def close(self) -> None:
        """Waits for the last write and shuts down orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._empty_trash()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except CheckpointError as later:  # must not mask the error that ended the block
            _LOG.warning("%s", later)

    def _steps_here(self) -> list[int]:
        """`steps` as this process sees them."""
        return sorted(step for step, complete in self._numbered().items() if complete)

    def _numbered(self) -> dict[int, bool]:
        found = {}
        for path in self.directory.iterdir():
            if path.name.isdecimal() and path.is_dir() and str(int(path.name)) == path.name:
                found[int(path.name)] = (path / _STATE).is_dir() and (path / _META).is_dir()
        return found

    def _prepare(self) -> None:
        probe = self.directory / ".writable"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if processes.is_first():
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoints to {self.directory}: {error.strerror}") from error
        self._empty_trash()
        incomplete = [step for step, complete in self._numbered().items() if not complete]
        incomplete = processes.broadcast_from_first(incomplete, name="incomplete checkpoints")
        self._set_aside(dict.fromkeys(incomplete, "incomplete"))

    def _set_aside(self, reasons: Mapping[int, str]) -> None:
        if self._read_only or not reasons:
            return
        for step, reason in reasons.items():
            _LOG.warning("checkpoint of step %d in %s is %s: moved to %s/", step, self.directory, reason, _ASIDE)
            if processes.is_first():
                home = self.directory / _ASIDE
                home.mkdir(exist_ok=True)
                count = sum(1 for _ in home.glob(f"{step}-{reason}*"))
                (self.directory / str(step)).rename(home / f"{step}-{reason}{f'-{count}' if count else ''}")
        processes.barrier("setting checkpoints aside")
        if self._manager is not None:
            self._manager.reload()

    def _empty_trash(self) -> None:
        if not self._read_only and processes.is_first():
            shutil.rmtree(self.directory / _TRASH, ignore_errors=True)

    def _save_error(self, error: Exception) -> CheckpointError:
        step, self._saving = self._saving, None
        full = getattr(error, "errno", None) == errno.ENOSPC or any(
            word in str(error) for word in ("No space left", "RESOURCE_EXHAUSTED", "Errno 28")
        )
        free = shutil.disk_usage(self.directory).free / 2**20
        why = f"no space left on the device ({free:.0f} MiB free)" if full else one_line(error)
        self._manager.reload()  # forgets the failed step and keeps the earlier ones
        kept = ", ".join(map(str, self._steps_here())) or "none"  # other processes may be elsewhere
        return CheckpointWriteError(
            f"checkpoint of step {step} could not be written to {self.directory}: {why}. "
            f"Complete checkpoints there: {kept}."
        )

    def _read(self, step: int, target: PyTree, partial: bool) -> Restored:
        document = self._read_document(step)
        wanted = named_leaves(target)
        self._check_fits(step, documents.differences(document["leaves"], wanted, partial=partial))
        specs = {name: documents.abstract(leaf) for name, leaf in wanted.items() if leaf.size}
        arrays: dict[str, Any] = {}
        if specs:
            args = ocp.args.PyTreeRestore(
                specs, restore_args=ocp.checkpoint_utils.construct_restore_args(specs), partial_restore=True
            )
            arrays = typed(self._orbax_restore(step, **{_STATE: args})[_STATE])
        for name, digest in integrity.fingerprint(arrays).items():
            if document["leaves"][name]["hash"] != digest:
                raise _DamagedError(f"the contents of leaf {name!r} differ from what was saved")
        leaves = [
            documents.typed(arrays[name], leaf, document["leaves"][name])
            if leaf.size
            else jnp.zeros(leaf.shape, leaf.dtype)
            for name, leaf in wanted.items()
        ]
        state = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(target), leaves)
        return Restored(step, state, document["metadata"], document["versions"])

    def _check_fits(self, step: int, differences: list[str]) -> None:
        if not differences:
            return
        shown = "\n".join(f"  {line}" for line in differences[:5])
        more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise CheckpointError(
            f"checkpoint {self.directory}/{step} was made with a different model or configuration:\n{shown}{more}\n"
            "Use the configuration that it was made with; nothing is cast or dropped silently."
        )

    def _read_document(self, step: int) -> dict[str, Any]:
        document = self._orbax_restore(step, **{_META: ocp.args.JsonRestore()})[_META]
        if not isinstance(document, dict) or document.get("sha256") != documents.digest(document):
            raise _DamagedError("its JSON document is damaged")
        if document["step"] != step:
            raise _DamagedError(f"it holds step {document['step']}: the folder was copied or renamed")
        if document["format"] != documents.FORMAT:
            raise CheckpointError(
                f"checkpoint {self.directory}/{step} has format {document['format']}; "
                f"this version of prm-jax reads format {documents.FORMAT}"
            )
        return document

    def _orbax_restore(self, step: int, **items: Any) -> Any:
        problem, result = "", None
        try:
            result = self._manager.restore(step, args=ocp.args.Composite(**items))
        except MemoryError:
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, PermissionError):
                raise CheckpointError(
                    f"checkpoint {self.directory}/{step} cannot be read: {one_line(error)}"
                ) from error
            problem = one_line(error)
        if processes.any_true(bool(problem), name="reading a checkpoint"):
            raise _DamagedError(f"it cannot be read: {problem}" if problem else "another process could not read it")
        return result


def one_line(error: BaseException, *, limit: int = 200) -> str:
    """The first non-empty line of an error, for messages; those of TensorStore are kilobytes long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _options(max_to_keep: int, read_only: bool) -> ocp.CheckpointManagerOptions:
    if read_only:
        return ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    return ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        todelete_subdir=_TRASH,  # deletes by renaming first, so that a kill cannot leave a half-deleted step
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
    )
