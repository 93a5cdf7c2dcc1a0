"""Do jobs of several processes survive what clusters do to them, with the same bits at the end?

Two processes train under `prm-jax launch`. They are killed at random moments, stopped, made to hang, signalled, and cut
off from each other; the launcher is killed, too. Every run must end with the bits of an undisturbed one.

    python -m experiments.reliability.main                  # job.py: runs.fit with weights split over both processes
    python -m experiments.reliability.main --job train      # prm-jax train --preset smoke
    python -m experiments.reliability.main --smoke          # one kill and one signal

Needs no accelerator; cutting the link needs Linux and root, and is skipped without them.
"""

import argparse
import json
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from experiments.reliability import drills
from prm_jax.runs.claims import stamp
from prm_jax.runs.versions import library_versions

JOBS = {
    "fit": (str(drills.JOB), "--steps", "150", "--pause", "0.1", "--watchdog-exit", "6"),
    "train": tuple(
        "train --preset smoke --model.num-layers 1 --sft.steps 5 --prm.pretrain-rollouts 0 "
        "--rollout.prompts-per-step 4 --rollout.filter none --advantage.no-gate --steps 40 --save-every 2 "
        "--eval.every 0 --eval.problems 8 --eval.prm-problems 0 --no-baseline --no-plots --mesh.data -1 "
        "--watchdog-exit 30 --distributed.heartbeat 10".split()
    ),
}  # fmt: skip
OUTAGE = 10.0


def run(job: str, count: int, seed: int, where: pathlib.Path, *, smoke: bool) -> dict[str, Any]:
    """All drills of a job; the name of each with what was seen."""
    setting = drills.Setting(JOBS[job], where, cache=where / "cache")
    print("undisturbed ...", flush=True)
    found: dict[str, Any] = {"undisturbed": drills.undisturbed(setting)}
    seconds, middle = found["undisturbed"]["seconds"], 20

    def add(name: str, drill: Callable[[], dict[str, Any]]) -> None:
        print(f"{name} ...", flush=True)
        found[name] = drill()

    add("kills", lambda: drills.kills(setting, 1 if smoke else count, 0.9 * seconds, seed))
    add("SIGTERM to one process", lambda: drills.interrupted(setting, middle))
    if smoke:
        return found
    add("process 0 stopped", lambda: drills.stopped(setting, middle, 0))
    add("process 1 stopped", lambda: drills.stopped(setting, middle, 1))
    if job == "fit":
        add("process 1 hangs", lambda: drills.hanging(setting))
    add("launcher killed", lambda: drills.launcher_killed(setting, middle))
    reason = drills.can_cut_links()
    if reason:
        found["link cut"] = {"skipped": reason}
        return found
    add("two hosts, undisturbed", lambda: drills.on_two_hosts(setting, "hosts", None, 0.0))
    add("link cut", lambda: drills.on_two_hosts(setting, "link", middle, OUTAGE))
    return found


def failures(found: Mapping[str, Any]) -> list[str]:
    """The drills that did not end as they must."""
    expected, wrong = found["undisturbed"]["digest"], []
    for name, drill in found.items():
        ends = drill.get("ends", [drill])
        for end in ends:
            codes = end.get("codes", [end.get("code", 0)])
            if "skipped" not in end and (end["digest"] != expected or any(codes)):
                wrong.append(f"{name}: exit codes {codes}, digest {end['digest'][:12]} instead of {expected[:12]}")
        if drill.get("first_code", 75) != 75 or drill.get("left", 0):
            wrong.append(f"{name}: {drill}")
    return wrong


def table(found: Mapping[str, Any]) -> str:
    """A Markdown table: one line per drill."""
    lines = ["| fault | times | seconds until the restart or the end | how processes ended | same bits |"]
    lines.append("|---|--:|--:|---|---|")
    expected = found["undisturbed"]["digest"]
    for name, drill in found.items():
        if "skipped" in drill:
            lines.append(f"| {name} | 0 | | skipped: {drill['skipped']} | |")
            continue
        took = [kill["seconds_to_restart"] for kill in drill.get("kills", ())] or [
            drill[key] for key in ("seconds_to_restart", "seconds_to_notice", "seconds_to_end") if key in drill
        ]
        spread = f"{min(took):.1f} to {max(took):.1f}" if len(took) > 1 else f"{took[0]:.1f}" if took else ""
        equal = all(end["digest"] == expected for end in drill.get("ends", [drill]))
        endings = "; ".join(_endings(drill))
        lines.append(f"| {name} | {len(took) or ''} | {spread} | {endings} | {'yes' if equal else 'NO'} |")
    return "\n".join(lines)


def _endings(drill: Mapping[str, Any]) -> list[str]:
    """How processes ended, without their numbers: "exited with 76 (stuck, ended by the watchdog)"."""
    parts = drill.get("how", [])
    lines = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    return sorted({line.split(" ", 2)[2] for line in lines})


def main() -> None:
    """Runs the drills, prints a table, and keeps the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=sorted(JOBS), default="fit")
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, help="directory for <job>.json")
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as where:
        found = run(given.job, given.kills, given.seed, pathlib.Path(where), smoke=given.smoke)
    print(table(found))
    wrong = failures(found)
    if given.out is not None:
        machine = {
            "cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
            "versions": library_versions(), "load": os.getloadavg()[0],
        }  # fmt: skip
        document = {**stamp(), "job": JOBS[given.job], "seed": given.seed, "machine": machine, "drills": found}
        document["failures"] = wrong
        document["seconds"] = time.monotonic() - begun
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"{given.job}.json").write_text(json.dumps(document, indent=2) + "\n")
    raise SystemExit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
