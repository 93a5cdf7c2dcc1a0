"""``prm-jax doctor``: what this machine has and lacks."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Show versions, devices, memory, extras and the sandbox of this machine."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> int:
    """Prints the report; 1 when jax finds no device, else 0."""
    from prm_jax.doctor import inspect, render

    report = inspect()
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 1 if "error" in report["devices"] else 0
