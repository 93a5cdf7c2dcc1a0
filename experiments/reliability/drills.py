"""Faults of jobs under `prm-jax launch`: kills, stopped and hanging processes, signals, and a cut network link.

Each drill runs a job to its end through its faults, and returns what was seen: how long each fault took to be noticed
and repaired, the exit code, and the digest of the results.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

REPO = pathlib.Path(__file__).resolve().parents[2]
JOB = pathlib.Path("experiments/reliability/job.py")
DEADLINE = 900.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """A job and where it runs.

    Attributes:
      words: the command after ``--``, without its run directory.
      where: an empty directory.
      processes: of the job.
      devices: CPU devices of each.
      cache: directory of compiled programs, so that a restart does not compile again.
    """

    words: tuple[str, ...]
    where: pathlib.Path
    processes: int = 2
    devices: int = 2
    cache: pathlib.Path | None = None

    def run_dir(self, name: str) -> pathlib.Path:
        """The run directory of one drill."""
        return self.where / name

    def environment(self) -> dict[str, str]:
        """Of the launcher."""
        paths = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH", "")]))
        more = {} if self.cache is None else {"JAX_COMPILATION_CACHE_DIR": str(self.cache)}
        return {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", **more}

    def command(self, name: str, *options: str, processes: int | None = None) -> list[str]:
        """The command line of the launcher."""
        count = str(self.processes if processes is None else processes)
        return [
            sys.executable, "-m", "prm_jax", "launch", "--nproc", count, "--devices-per-process", str(self.devices),
            "--delay", "0.2", "--longest-delay", "1", "--max-stalled", "3",
            *options, "--", *self.words, "--run-dir", str(self.run_dir(name)),
        ]  # fmt: skip


class Launcher:
    """A running launcher, its output in a file."""

    def __init__(self, setting: Setting, name: str, *options: str, prefix: Sequence[str] = (), processes: int = 0):
        """Starts it; `prefix` precedes the command, as ``ip netns exec NAME`` does."""
        self.log = setting.where / f"{name}.{len(list(setting.where.glob(f'{name}.*.log')))}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, *setting.command(name, *options, processes=processes or None)],
                stdout=output, stderr=subprocess.STDOUT, env=setting.environment(), cwd=REPO,
            )  # fmt: skip

    def ranks(self) -> list[int]:
        """Process ids of the job's processes."""
        pid = self.process.pid
        with contextlib.suppress(OSError):
            return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def text(self) -> str:
        """The output so far."""
        return self.log.read_text(errors="replace")

    def attempts(self) -> int:
        """How often the processes have been started."""
        return len(re.findall(r"^launch: attempt \d+", self.text(), flags=re.MULTILINE))

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> float:
        """Waits; the seconds that it took.

        Raises:
          RuntimeError: the launcher has ended, or the time is over.
        """
        begun = time.monotonic()
        while not condition():
            if self.process.poll() is not None and not condition():
                raise RuntimeError(
                    f"the launcher ended with {self.process.returncode} before {what}:\n{self.text()[-4000:]}"
                )
            if time.monotonic() - begun > seconds:
                raise RuntimeError(f"no {what} within {seconds:g} s:\n{self.text()[-4000:]}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def finish(self, seconds: float = DEADLINE) -> int:
        """Waits for the end; the exit code."""
        return self.process.wait(timeout=seconds)

    def end(self) -> None:
        """Ends it in any case; its processes end with it."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def launched(setting: Setting, name: str, *options: str, **more: Any) -> Iterator[Launcher]:
    """A launcher that is ended when the block fails."""
    launcher = Launcher(setting, name, *options, **more)
    try:
        yield launcher
    finally:
        launcher.end()


def newest_step(run_dir: pathlib.Path) -> int:
    """The newest complete checkpoint of the main loop; -1: none."""
    found = [int(path.parent.name) for path in run_dir.glob("checkpoints/*/meta") if path.parent.name.isdecimal()]
    return max(found, default=-1)


def digest(run_dir: pathlib.Path) -> str:
    """SHA-256 over the results of a run: what job.py found, or the weights of the trained models."""
    if (run_dir / "result.json").is_file() and "sha256" in (kept := json.loads((run_dir / "result.json").read_text())):
        return str(kept["sha256"])
    whole = hashlib.sha256()
    for path in sorted(run_dir.glob("p*/**/*.safetensors")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def undisturbed(setting: Setting) -> dict[str, Any]:
    """The same job without faults."""
    begun = time.monotonic()
    with launched(setting, "undisturbed") as launcher:
        code = launcher.finish()
        if code:
            raise RuntimeError(f"the undisturbed job ended with {code}:\n{launcher.text()[-4000:]}")
    return {"seconds": time.monotonic() - begun, "digest": digest(setting.run_dir("undisturbed"))}


def kills(setting: Setting, count: int, seconds: float | None, seed: int) -> dict[str, Any]:
    """Random processes are killed at random moments within `seconds` of the start of an attempt.

    A job that finishes before its next kill is followed by another one, until there were `count` kills.

    Args:
      setting: the job.
      count: number of kills.
      seconds: the latest moment of a kill; None: 1.5 times what the first attempt takes to its first checkpoint.
      seed: of processes and moments.
    """
    chance = random.Random(seed)
    found: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    while len(found) < count:
        path = setting.run_dir(f"kills-{seed}-{len(ends)}")
        # Kills may all come before the first checkpoint.
        with launched(setting, path.name, "--max-stalled", str(count + 1)) as launcher:
            if seconds is None:
                seconds = 1.5 * launcher.wait_for(lambda path=path: newest_step(path) >= 0, "first checkpoint")
            for attempt in range(1, count - len(found) + 1):
                kill = _kill_one(launcher, setting, path, attempt, chance, seconds)
                if kill is None:
                    break
                found.append(kill)
            code = launcher.finish()
        ends.append({"code": code, "digest": digest(path)})
    return {"kills": found, "ends": ends}


def _kill_one(
    launcher: Launcher, setting: Setting, path: pathlib.Path, attempt: int, chance: random.Random, seconds: float
) -> dict[str, Any] | None:
    """Kills a process of an attempt, and waits for the next one; None when the job has finished before."""
    launcher.wait_for(lambda: launcher.attempts() >= attempt, f"attempt {attempt}")
    launcher.wait_for(lambda: len(launcher.ranks()) == setting.processes, "all processes")
    after = chance.uniform(0.0, seconds)
    time.sleep(after)
    ranks = launcher.ranks()
    if len(ranks) < setting.processes:
        return None
    place, step = chance.randrange(len(ranks)), newest_step(path)
    os.kill(ranks[place], signal.SIGKILL)
    took = launcher.wait_for(lambda: launcher.attempts() > attempt, f"attempt {attempt + 1}")
    return {"process": place, "after": after, "newest_checkpoint": step, "seconds_to_restart": took}


def at_step(launcher: Launcher, run_dir: pathlib.Path, step: int) -> list[int]:
    """Waits for the checkpoint of a step; the process ids of the job's processes."""
    launcher.wait_for(lambda: newest_step(run_dir) >= step, f"checkpoint {step}")
    return launcher.ranks()


def stopped(setting: Setting, step: int, place: int = 1) -> dict[str, Any]:
    """One process is stopped with SIGSTOP, as a host that swaps or freezes would be."""
    path = setting.run_dir(f"stopped-{place}")
    with launched(setting, path.name) as launcher:
        ranks = at_step(launcher, path, step)
        os.kill(ranks[place], signal.SIGSTOP)
        took = launcher.wait_for(lambda: launcher.attempts() > 1, "restart")
        code = launcher.finish()
    return {"seconds_to_restart": took, "code": code, "digest": digest(path), "how": _causes(launcher.text())}


def hanging(setting: Setting) -> dict[str, Any]:
    """One process hangs while it stays alive; job.py does it to itself (``--fault hang``)."""
    path = setting.run_dir("hanging")
    with launched(dataclasses.replace(setting, words=(*setting.words, "--fault", "hang")), path.name) as launcher:
        launcher.wait_for(lambda: path.with_name(f"{path.name}.fault").exists(), "the hang")
        took = launcher.wait_for(lambda: launcher.attempts() > 1, "restart")
        code = launcher.finish()
    return {"seconds_to_restart": took, "code": code, "digest": digest(path), "how": _causes(launcher.text())}


def interrupted(setting: Setting, step: int) -> dict[str, Any]:
    """SIGTERM to one process: all save the same step, the launcher exits with 75, and the same command continues."""
    path = setting.run_dir("interrupted")
    with launched(setting, path.name) as launcher:
        ranks = at_step(launcher, path, step)
        begun = time.monotonic()
        os.kill(ranks[-1], signal.SIGTERM)
        first = launcher.finish()
        took = time.monotonic() - begun
    with launched(setting, path.name) as launcher:
        code = launcher.finish()
    return {"first_code": first, "seconds_to_end": took, "code": code, "digest": digest(path)}


def launcher_killed(setting: Setting, step: int) -> dict[str, Any]:
    """SIGKILL to the launcher: its processes end with it, and the same command continues."""
    path = setting.run_dir("launcher-killed")
    with launched(setting, path.name) as launcher:
        ranks = at_step(launcher, path, step)
        launcher.process.kill()
        launcher.process.wait()
        begun = time.monotonic()
        while any(_lives(rank) for rank in ranks) and time.monotonic() - begun < 30:
            time.sleep(0.01)
        left, took = sum(_lives(rank) for rank in ranks), time.monotonic() - begun
    with launched(setting, path.name) as launcher:
        code = launcher.finish()
    return {"left": left, "seconds_to_end": took, "code": code, "digest": digest(path)}


# --------------------------------------------------------------------------------------- network


def can_cut_links() -> str:
    """Why network namespaces cannot be used here; empty: they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (iproute2)"
    tried = subprocess.run(["ip", "netns", "add", f"prmjax-{os.getpid()}"], capture_output=True, text=True)
    if tried.returncode:
        return f"ip netns add: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", f"prmjax-{os.getpid()}"], check=True)
    return ""


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[list[str], list[str], Callable[[bool], None]]]:
    """Two network namespaces with one link; gives what runs a command in each, and what cuts or joins the link."""
    names, host = (f"prmjax-{os.getpid()}-a", f"prmjax-{os.getpid()}-b"), os.uname().nodename
    hosts = [pathlib.Path("/etc/netns") / name / "hosts" for name in names]
    try:
        for name, file, address in zip(names, hosts, ("10.213.0.1", "10.213.0.2"), strict=True):
            _ip("netns", "add", name)
            file.parent.mkdir(parents=True)
            # The name of this host must lead to the link: collectives announce the address that it has.
            file.write_text(f"127.0.0.1 localhost\n{address} {host}\n")
        _ip("link", "add", "prmjax0", "netns", names[0], "type", "veth", "peer", "name", "prmjax1", "netns", names[1])
        for number, name in enumerate(names):
            _ip("-n", name, "address", "add", f"10.213.0.{number + 1}/24", "dev", f"prmjax{number}")
            _ip("-n", name, "link", "set", f"prmjax{number}", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        first, second = (["ip", "netns", "exec", name] for name in names)
        yield first, second, lambda up: _ip("-n", names[1], "link", "set", "prmjax1", "up" if up else "down")
    finally:
        for name, file in zip(names, hosts, strict=True):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            shutil.rmtree(file.parent, ignore_errors=True)


def hosts_options(index: int) -> tuple[str, ...]:
    """The launcher's options on one of the two hosts."""
    return ("--coordinator", "10.213.0.1:7411", "--first-process", str(index), "--processes", "2")


def on_two_hosts(setting: Setting, name: str, step: int | None, outage: float) -> dict[str, Any]:
    """A job with one launcher per host; the link between them is cut for a while after the checkpoint of a step."""
    path, found = setting.run_dir(name), {}
    with two_hosts() as (first, second, link):
        with (
            launched(setting, f"{name}", *hosts_options(0), prefix=first, processes=1) as one,
            launched(setting, f"{name}", *hosts_options(1), prefix=second, processes=1) as two,
        ):
            if step is not None:
                one.wait_for(lambda: newest_step(path) >= step, f"checkpoint {step}")
                link(False)
                begun = time.monotonic()
                found["seconds_to_notice"] = max(
                    launcher.wait_for(lambda launcher=launcher: "restart 1 in" in launcher.text(), "restart")
                    for launcher in (one, two)
                )
                time.sleep(max(0.0, outage - (time.monotonic() - begun)))
                link(True)
                found["outage"] = time.monotonic() - begun
            codes = [launcher.finish() for launcher in (one, two)]
        found["attempts"] = [one.attempts(), two.attempts()]
        found["how"] = [_causes(launcher.text()) for launcher in (one, two)]
    return {**found, "codes": codes, "digest": digest(path)}


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _causes(text: str) -> list[str]:
    """The launcher's lines on how processes ended."""
    return re.findall(r"^launch: (process \d+ (?:exited|was).*)$", text, flags=re.MULTILINE)


def _lives(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
