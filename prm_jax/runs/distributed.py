"""Starting and ending together: how the processes of one run find each other, and how a failure of one ends all.

Without this, a process that fails leaves the others waiting in a collective operation. Here the first failure is
published through JAX's coordination service; a thread in every process looks for it once a second, and ends a process
that does not end by itself.
"""

import contextlib
import json
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from prm_jax import exit_codes
from prm_jax.errors import UnavailableError, UserError
from prm_jax.runs import processes
from prm_jax.runs.distributed_options import COORDINATOR, PROCESS_ID, PROCESSES, DistributedOptions
from prm_jax.runs.processes import PREFIX, STATE, OtherProcessError
from prm_jax.runs.stopping import InterruptedRun
from prm_jax.runs.versions import library_versions

_FAILURE, _ENDED = f"{PREFIX}/failure", f"{PREFIX}/ended"
_SECONDS = {exit_codes.DIVERGED: 20.0}
"""Seconds in which a process may end by itself after the failure of another, by exit code: a checkpoint may be under
way where a run has diverged."""


def initialize(options: DistributedOptions | None = None) -> None:
    """Joins the processes of a run; call it in all of them, before anything touches a device.

    Does nothing in a run of one process, and when called again. Processes are found by the options, by the environment
    (``PRM_JAX_COORDINATOR``, ``PRM_JAX_PROCESSES``, ``PRM_JAX_PROCESS_ID``), or by JAX itself.

    Raises:
      UserError: only some of coordinator, processes and process id are known, or they cannot be right; a device
        has been used already; or the processes have different versions or numbers of devices.
      UnavailableError: the coordinator does not answer.

    When not all processes come in time, JAX cannot give up the connection, and the process ends with exit code 69.
    """
    options = DistributedOptions() if options is None else options
    if processes.client() is not None:
        return
    STATE.patience = options.patience
    coordinator, number, process_id = _given(options)
    if number == 1 or (not coordinator and _alone()):
        return
    import jax

    with contextlib.suppress(AttributeError):  # its handler of SIGTERM would keep a process from ending
        jax.config.update("jax_enable_preemption_service", False)
    timeout = max(1, round(options.timeout))
    given: dict[str, Any] = {}
    if coordinator:
        if process_id != 0:
            _wait_for(coordinator, options.timeout)
        given = {"coordinator_address": coordinator, "num_processes": number, "process_id": process_id}
    with _deadline(options.timeout, coordinator or "the coordinator", number):
        try:
            jax.distributed.initialize(
                **given, initialization_timeout=timeout + 60, heartbeat_timeout_seconds=options.heartbeat
            )
        except (ValueError, RuntimeError) as error:
            if not coordinator and _nothing_found(error):
                return
            raise UserError(_start_error(error, coordinator)) from error
    threading.Thread(target=_watch, name="failures of other processes", daemon=True).start()
    _check_alike()


def publish_failure(message: str, code: int) -> None:
    """Tells the other processes that this one fails, so that they end with the same exit code within seconds.

    Args:
      message: what failed.
      code: exit code. The first failure of a run counts.
    """
    if processes.count() == 1 or STATE.failure is not None:
        return
    record = {"process": processes.index(), "host": platform.node(), "message": message, "code": code}
    with contextlib.suppress(Exception):  # published already, or process 0 has gone
        processes.client().key_value_set(_FAILURE, json.dumps(record))


def leave(code: int) -> int:
    """Ends this process's part of the run: waits for the others after success, and exits at once after a failure.

    Args:
      code: exit code of this process. A failure must have been published.

    Returns:
      The highest exit code of all processes, where Python may exit as usual: after success, or when everything is
      saved. After a failure of one of several processes this does not return, since Python's own exit would wait
      minutes for processes that may be stuck.
    """
    if processes.count() == 1:
        return code
    if code in (exit_codes.DONE, exit_codes.INTERRUPTED):
        try:
            return max(processes.gather(code, name="the end"))
        except UserError as error:
            _say(f"error: {error}")
            code = error.exit_code
    with contextlib.suppress(Exception):
        processes.client().key_value_set(f"{_ENDED}/{processes.index()}", "")
    if processes.is_first():  # holds the message: the others must have read it
        _wait_for_others(_SECONDS.get(code, 3.0) + 5.0)
    _exit(code)
    return code


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """For scripts: an exception in one process ends all, with the exit code of a `UserError` and otherwise 1.

    In a run of one process the exception is raised as usual. `InterruptedRun` ends all with exit code 75.
    """
    try:
        yield
    except InterruptedRun as stopped:
        _say(f"{stopped}; continue with --resume")
        raise SystemExit(leave(exit_codes.INTERRUPTED)) from None
    except BaseException as error:
        if processes.count() == 1:
            raise
        traceback.print_exc()
        code = error.exit_code if isinstance(error, UserError) else exit_codes.UNEXPECTED
        publish_failure(f"{type(error).__name__}: {error}", code)
        leave(code)


# ------------------------------------------------------------------------------------------ starting


def _given(options: DistributedOptions) -> tuple[str, int | None, int | None]:
    """(coordinator, number of processes, number of this process) of the options and the environment, checked."""
    coordinator = options.coordinator or os.environ.get(COORDINATOR, "")
    number = options.processes if options.processes is not None else _number(PROCESSES)
    process_id = options.process_id if options.process_id is not None else _number(PROCESS_ID)
    if number == 1 and process_id in (None, 0):
        return "", 1, 0
    named = {
        f"--distributed.coordinator (${COORDINATOR})": coordinator or None,
        f"--distributed.processes (${PROCESSES})": number,
        f"--distributed.process-id (${PROCESS_ID})": process_id,
    }
    missing = [name for name, value in named.items() if value is None]
    if missing and len(missing) < len(named):
        raise UserError(
            f"a run of several processes needs {' and '.join(missing)} as well: give all three in every process, or "
            "none where SLURM, Open MPI, GKE or a Cloud TPU starts them"
        )
    if missing:
        return "", None, None
    assert number is not None and process_id is not None
    if process_id >= number:
        raise UserError(
            f"--distributed.process-id is {process_id}, but there are {number} processes (--distributed.processes): "
            f"they are numbered 0 to {number - 1}"
        )
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--distributed.coordinator is {coordinator!r}; expected HOST:PORT, such as node0:8476")
    return coordinator, number, process_id


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} is {text!r}; expected a number")
    return int(text)


def _alone() -> bool:
    """Whether there is no need to look for others.

    A launcher says that it has started one process (several such jobs on a host would share one port), or this is a pod
    of Kubernetes outside an indexed job.
    """
    sizes = [os.environ[name] for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE") if name in os.environ]
    if sizes:
        return all(size == "1" for size in sizes)
    of_tpus = "TPU_WORKER_HOSTNAMES" in os.environ or "TPU_PROCESS_ADDRESSES" in os.environ
    return "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ and not of_tpus


def _wait_for(coordinator: str, seconds: float) -> None:
    """Waits until something answers there; JAX itself would end the process with a stack trace."""
    host, _, port = coordinator.rpartition(":")
    deadline, problem = time.monotonic() + seconds, ""
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=min(5.0, seconds)).close()
            return
        except OSError as error:
            problem = error.strerror or str(error)
        if time.monotonic() >= deadline:
            raise UnavailableError(
                f"the coordinator {coordinator} (--distributed.coordinator) does not answer after {seconds:g} s: "
                f"{problem}. Start process 0 there, check address, port and firewall, or raise --distributed.timeout"
            )
        time.sleep(min(0.2, seconds / 10))


@contextlib.contextmanager
def _deadline(seconds: float, coordinator: str, number: int | None) -> Iterator[None]:
    """Ends this process with a sentence when the block takes longer; nothing else can interrupt it."""

    def give_up() -> None:
        many = "all" if number is None else f"all {number}"
        _say(
            f"error: not {many} processes have connected to {coordinator} within {seconds:g} s. Start the missing ones "
            "with the same --distributed.coordinator and --distributed.processes and their own "
            "--distributed.process-id, or raise --distributed.timeout"
        )
        _exit(exit_codes.UNAVAILABLE)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _nothing_found(error: Exception) -> bool:
    """Whether JAX says that it knows no launcher here, or that devices are in use already (as in a notebook)."""
    text = str(error)
    return "should be defined" in text or "must be defined" in text or "must be called before" in text


def _start_error(error: Exception, coordinator: str) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "must be called before" in text:
        return "runs.initialize() is called too late: call it before anything that uses a device"
    where = f" at {coordinator}" if coordinator else ""
    return (
        f"the processes of this run cannot join{where}: {text[:300]}. Check that the port is free in process 0, "
        "or give --distributed.processes 1 to run alone"
    )


def _check_alike() -> None:
    """Versions must be the same everywhere, and so must the number of devices per process."""
    processes.agree("versions", {"python": platform.python_version(), **library_versions()})
    import jax

    kinds = sorted({device.device_kind for device in jax.local_devices()})
    processes.agree("devices", {"devices per process": jax.local_device_count(), "kind": ", ".join(kinds)})


# -------------------------------------------------------------------------------------------- ending


def _watch() -> None:
    """Looks for the failure of another process; ends this one if it has not ended itself after a while."""
    client = processes.client()
    while True:
        time.sleep(1.0)
        try:
            record = json.loads(client.key_value_try_get(_FAILURE))
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the coordination service has gone: JAX ends the process
        if record["process"] == processes.index():
            return
        where = f"process {record['process']} on {record['host']}"
        STATE.failure = OtherProcessError(f"stopped because {where} failed: {record['message']}", record["code"])
        time.sleep(_SECONDS.get(record["code"], 3.0))
        _say(f"error: {STATE.failure}")
        leave(record["code"])


def _wait_for_others(seconds: float) -> None:
    """Waits until all other processes have said that they end."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(Exception):
        while time.monotonic() < deadline:
            if len(processes.client().key_value_dir_get(_ENDED)) >= processes.count():
                return
            time.sleep(0.1)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _exit(code: int) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
