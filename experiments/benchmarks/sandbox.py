"""What running model-written programs costs, and whether the sandbox survives many hostile ones.

    python -m experiments.benchmarks.sandbox --out experiments/benchmarks/sandbox.json

For each level of isolation that the machine has: the start of a sandbox, programs per second on one worker and on all,
and a load of programs of which one in eight is hostile. Descriptors, threads and processes are counted before and
after. Processor time is that of the sandboxes and their programs, which means something on a busy machine, too.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

from prm_jax.verifiers.sandbox import LEVELS, CallTests, Limits, LocalSandbox, available_levels
from prm_jax.verifiers.sandbox.levels import find_interpreter
from prm_jax.verifiers.sandbox.worker import Worker

SQUARE = "def square(x):\n    return x * x\n"
TESTS = CallTests(tuple(f"assert square({n}) == {n * n}" for n in range(5)))
HOSTILE = (
    "import os\nos.fork()",
    "x = bytearray(4 << 30)",
    "while True: print('x' * 10000)",
    "import os\nos.kill(-1, 9)",
    "open('/tmp/x', 'w')",
    "import os\nos._exit(0)",
    "def square(x):\n    import os\n    os._exit(0)",
    "import socket\nsocket.socket()",
)


def measure(level: str, count: int, workers: int) -> dict[str, object]:
    """Figures of one level."""
    interpreter, limits = find_interpreter(), Limits(cpu_seconds=1, wall_seconds=10)
    starts = []
    for slot in range(5):
        worker = Worker(level, interpreter, slot)  # type: ignore[arg-type]
        begun = time.monotonic()
        worker.run_script("print(1)", "", limits)
        starts.append(time.monotonic() - begun)
        worker.close()
    with LocalSandbox(level, workers=workers, limits=limits) as sandbox:
        sandbox.check_many([(SQUARE, TESTS)] * 4 * workers)  # starts every sandbox
        scripts = _per_second(lambda: [sandbox.run("print(input())", "1") for _ in range(100)], 100)
        checks = _per_second(lambda: [sandbox.check(SQUARE, TESTS) for _ in range(100)], 100)
        script_ms = _processor_ms(sandbox, lambda: sandbox.run_many([("print(input())", "1")] * 400), 400)
        check_ms = _processor_ms(sandbox, lambda: sandbox.check_many([(SQUARE, TESTS)] * 400), 400)
        together = _per_second(lambda: sandbox.run_many([("print(input())", "1")] * 400), 400)
    return {
        "start_ms": round(1000 * statistics.median(starts), 1),
        "scripts_per_second_one_worker": round(scripts, 1),
        "five_tests_per_second_one_worker": round(checks, 1),
        "scripts_per_second": round(together, 1),
        "script_processor_ms": round(script_ms, 2),
        "five_tests_processor_ms": round(check_ms, 2),
        "load": load(level, count, workers, limits),
    }


def load(level: str, count: int, workers: int, limits: Limits) -> dict[str, object]:
    """What many programs with hostile ones among them give, cost, and leave behind."""
    jobs = [HOSTILE[i // 8 % len(HOSTILE)] if i % 8 == 0 else SQUARE for i in range(count)]
    with LocalSandbox(level, workers=workers, limits=limits) as sandbox:
        sandbox.check_many([(SQUARE, TESTS)] * 4 * workers)  # starts every sandbox
        before, pids = _resources(), sandbox.pids()
        begun = time.monotonic()
        results = sandbox.check_many([(code, TESTS) for code in jobs], stop_at_failure=True)
        seconds = time.monotonic() - begun
        after, again = _resources(), len(set(sandbox.pids()) - set(pids))
    passed = [all(r.state == "pass" for r in result) for result in results]
    return {
        "programs": count,
        "hostile": sum(i % 8 == 0 for i in range(count)),
        "seconds": round(seconds, 1),
        "per_second": round(count / seconds, 1),
        "honest_that_pass": sum(ok for i, ok in enumerate(passed) if i % 8),
        "hostile_that_pass": sum(ok for i, ok in enumerate(passed) if i % 8 == 0),
        "infra_errors": sum(r.state == "infra_error" for result in results for r in result),
        "resources_before": before,
        "resources_after": after,
        "sandboxes_restarted": again,
    }


def _processor_ms(sandbox: LocalSandbox, work: Callable[[], object], count: int) -> float:
    """Milliseconds of processor time, of this process and of the sandboxes with their programs, for each of `count`."""
    begun = _seconds_of(sandbox.pids())
    work()
    return 1000 * (_seconds_of(sandbox.pids()) - begun) / count


def _seconds_of(roots: Sequence[int]) -> float:
    """Processor time so far of this process and of others with their descendants, ended ones included."""
    found: dict[int, tuple[int, int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                words = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(name)] = int(words[1]), sum(map(int, words[11:15]))
    wanted = set(roots)
    for _ in range(8):  # generations
        wanted |= {pid for pid, (parent, _) in found.items() if parent in wanted}
    ticks = sum(found[pid][1] for pid in wanted if pid in found)
    return ticks / os.sysconf("SC_CLK_TCK") + time.process_time()


def _per_second(work: object, count: int) -> float:
    times = []
    for _ in range(3):
        begun = time.monotonic()
        work()  # type: ignore[operator]
        times.append(time.monotonic() - begun)
    return count / statistics.median(times)


def _resources() -> dict[str, int]:
    own = os.getpid()
    children = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    children += int(file.read().rpartition(")")[2].split()[1]) == own
            except OSError:
                continue
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": children,
        "files_in_tmp": len(os.listdir("/tmp")),
    }


def main() -> None:
    """Measures every level and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="programs of the load")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", help="JSON file")
    options = parser.parse_args()
    levels = [level for level in LEVELS if available_levels()[level] is None]
    found = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}",
        "python": find_interpreter().path,
        "levels": {level: measure(level, options.count, options.workers) for level in levels},
    }
    print(json.dumps(found, indent=1))
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
