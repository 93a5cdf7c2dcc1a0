"""What the processes of one run need to work together: their numbers, shares of the work, and data exchanged on hosts.

Everything here does nothing special with one process. The exchanges are collective: all processes call them in the
same order, from one thread. Data goes through the coordination service that ``jax.distributed`` starts in process 0,
never through the devices, so that an exchange can wait with a deadline and end when another process fails.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from prm_jax.errors import UnavailableError, UserError

T = TypeVar("T")
PREFIX = "prm_jax"
_SLICE_SECONDS = 1.0


class OtherProcessError(UserError):
    """Another process has failed; this one ends with its exit code.

    Attributes:
      exit_code: of the process that failed first.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


class _Exchange:
    """Number of exchanges so far, how long one may take, and the failure of another process once there is one."""

    sequence = 0
    patience = 3600.0
    failure: OtherProcessError | None = None


STATE = _Exchange()
"""Of this process; for `prm_jax.runs.distributed`."""


def count() -> int:
    """Number of processes of this run; 1 without ``jax.distributed``, and then without touching a device."""
    state = _distributed()
    return 1 if state is None else state.num_processes


def index() -> int:
    """Number of this process, from 0."""
    state = _distributed()
    return 0 if state is None else state.process_id


def is_first() -> bool:
    """Whether this is process 0, which alone writes files."""
    return index() == 0


def client() -> Any:
    """The client of JAX's coordination service; None where ``jax.distributed`` is not initialised."""
    state = _distributed()
    return None if state is None else state.client


def share(number: int, *, of: int | None = None, at: int | None = None) -> slice:
    """The consecutive part of `number` items that a process works on; the parts differ in size by at most one.

    Args:
      number: of items.
      of: number of processes; None: `count()`.
      at: which process; None: `index()`.
    """
    of, at = count() if of is None else of, index() if at is None else at
    size, more = divmod(number, of)
    begin = at * size + min(at, more)
    return slice(begin, begin + size + (at < more))


def gather(value: T, *, name: str = "data", seconds: float | None = None) -> list[T]:
    """What every process gives, in the order of processes, in every process.

    Args:
      value: plain data and NumPy arrays, see `prm_jax.runs.wire.encode`; a few megabytes at most.
      name: what is exchanged, for messages. Processes that meet under different names end with an error.
      seconds: deadline; None: ``--distributed.patience``.

    Raises:
      UnavailableError: not all processes came before the deadline, or process 0 has gone.
      UserError: a process is at another point of the program.
      OtherProcessError: another process has failed.
    """
    if count() == 1:
        return [value]
    from prm_jax.runs import wire  # NumPy is imported only where it is needed

    seconds = STATE.patience if seconds is None else seconds
    deadline = time.monotonic() + seconds
    STATE.sequence += 1
    key, own = f"{PREFIX}/gather/{STATE.sequence}", wire.encode((name, value))
    if not is_first():
        client().key_value_set_bytes(f"{key}/{index()}", own)
        everything = wire.decode(_get(f"{key}/all", deadline, f"process 0 at {name!r}", seconds))
        return _of_one_name(everything)
    parts = [own]
    for process in range(1, count()):
        parts.append(_get(f"{key}/{process}", deadline, f"process {process} at {name!r}", seconds))
        client().key_value_delete(f"{key}/{process}")
    joined = wire.encode([wire.as_array(part) for part in parts])
    client().key_value_set_bytes(f"{key}/all", joined)
    if STATE.sequence > 1:  # all processes are here, so they have read the previous one
        client().key_value_delete(f"{PREFIX}/gather/{STATE.sequence - 1}/all")
    return _of_one_name(wire.decode(joined))


def broadcast_from_first(value: T, *, name: str = "data") -> T:
    """What process 0 gives, in every process; the others' value is ignored."""
    return gather(value if is_first() else None, name=name)[0]  # type: ignore[return-value]


def any_true(flag: bool, *, name: str = "flag") -> bool:
    """Whether the flag is set in any process."""
    return any(gather(bool(flag), name=name))


def barrier(name: str, seconds: float | None = None) -> None:
    """Waits until all processes are here.

    Args:
      name: of the place, for messages.
      seconds: deadline; None: ``--distributed.patience``.
    """
    gather(None, name=name, seconds=seconds)


def agree(name: str, value: Any) -> None:
    """Checks that all processes have the same value.

    Args:
      name: what it is, for the message: "options".
      value: plain data; of mappings the keys that differ are listed.

    Raises:
      UserError: they do not; raised in all processes, and says which process has what.
    """
    if count() == 1:
        return
    found = [json.loads(json.dumps(given, default=str)) for given in gather(_plain(value), name=f"comparing {name}")]
    if all(given == found[0] for given in found):
        return
    if all(isinstance(given, dict) for given in found):
        names = sorted({key for given in found for key in given})
        differing = [key for key in names if any(given.get(key) != found[0].get(key) for given in found)]
        lines = [f"  {key}: {_by_process([given.get(key) for given in found])}" for key in differing[:8]]
        lines += [f"  and {len(differing) - 8} more"] if len(differing) > 8 else []
    else:
        lines = [f"  {_by_process(found)}"]
    raise UserError(
        f"the processes of this run disagree on {name}:\n" + "\n".join(lines) + "\nStart all of them with the same "
        "command, versions and files; only --distributed.process-id may differ"
    )


def to_global(tree: Any, shardings: Any) -> Any:
    """Places arrays that every process holds as a whole; each process copies its own parts to its devices.

    Args:
      tree: pytree of host or local arrays, typed PRNG keys included, the same in every process.
      shardings: pytree of shardings, leaf by leaf, or one for all; they may include devices of other processes.
    """
    import jax

    from prm_jax.models.sharding import place

    if count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda leaf: one, tree)
    return jax.tree.map(place, tree, shardings)


def to_host(tree: Any) -> Any:
    """The whole arrays as NumPy arrays in every process; collective where an array spans processes."""
    import jax

    return jax.tree.map(_fetch, tree) if count() > 1 else jax.device_get(tree)


def _fetch(leaf: Any) -> Any:
    import jax

    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return jax.device_get(leaf)
    if leaf.is_fully_replicated:
        return jax.device_get(leaf.addressable_data(0))
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def _distributed() -> Any:
    """JAX's own record of the processes; None before ``jax.distributed`` is initialised."""
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed

    return distributed.global_state if distributed.global_state.client is not None else None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _by_process(values: Sequence[Any]) -> str:
    """"4 in process 0, 2 in processes 1, 3"."""
    groups: dict[str, list[int]] = {}
    for process, value in enumerate(values):
        groups.setdefault(json.dumps(value), []).append(process)
    return ", ".join(
        f"{text} in process{'es' if len(where) > 1 else ''} {', '.join(map(str, where[:8]))}"
        + (", ..." if len(where) > 8 else "")
        for text, where in groups.items()
    )


def _of_one_name(parts: Sequence[Any]) -> list[Any]:
    from prm_jax.runs import wire

    pairs = [wire.decode(part.tobytes()) for part in parts]
    names = [name for name, _ in pairs]
    if len(set(names)) > 1:
        raise UserError(
            f"the processes of this run are at different points of the program: {_by_process(names)}. They must run "
            "the same command with the same options, files and code"
        )
    return [value for _, value in pairs]


def _get(key: str, deadline: float, whom: str, seconds: float) -> bytes:
    """Waits for a key in short slices, between which the failure of another process is noticed."""
    while True:
        check_others()
        left = deadline - time.monotonic()
        try:
            return client().blocking_key_value_get_bytes(key, int(1000 * max(0.1, min(_SLICE_SECONDS, left))))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                check_others()
                what = f"the connection to process 0 is lost while waiting for {whom}: {error}"
                raise UnavailableError(what) from error
        if time.monotonic() >= deadline:
            raise UnavailableError(
                f"process {index()} has waited {seconds:g} s for {whom}: it may hang, or still be working. See its "
                "output; --distributed.patience is the limit"
            )


def check_others() -> None:
    """Raises the failure of another process, once there is one.

    Raises:
      OtherProcessError: see above.
    """
    if STATE.failure is not None:
        raise STATE.failure
