"""What the small experiments share: flags from a configuration, tables on the screen, numbers in a file.

An experiment is a frozen dataclass of settings, a smaller instance of it for smoke runs, and a function from settings
to tables. Run one from the root of the repository: `python -m experiments.<name>.main [--smoke] [--json FILE]`, with
a flag for every setting.
"""

import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import tyro

Config = TypeVar("Config")
Tables = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Title -> row -> column -> number."""


def main(run: Callable[[Config], Tables], full: Config, smoke: Config) -> None:
    """Reads flags, runs, prints."""
    arguments = sys.argv[1:]
    start = smoke if "--smoke" in arguments else full
    arguments = [a for a in arguments if a != "--smoke"]
    target = None
    if "--json" in arguments:
        at = arguments.index("--json")
        if at + 1 == len(arguments):
            sys.exit("--json needs a file name")
        target = pathlib.Path(arguments[at + 1])
        del arguments[at : at + 2]
    config: Any = tyro.cli(type(start), default=start, args=arguments)
    began = time.perf_counter()
    tables = run(config)
    took = time.perf_counter() - began
    print(render(tables))
    print(f"{took:.1f} s on {machine()}; {config}")
    if target is not None:
        target.write_text(json.dumps({"config": str(config), "machine": machine(), "tables": tables}, indent=1) + "\n")


def machine() -> str:
    """One line on what the numbers were made with."""
    device = jax.devices()[0]
    return (
        f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores, "
        f"jax {jax.__version__}, Python {platform.python_version()}"
    )


def render(tables: Tables) -> str:
    """The tables as aligned text, numbers to four digits."""
    lines = []
    for title, rows in tables.items():
        columns = list(dict.fromkeys(c for row in rows.values() for c in row))
        cells = [["", *columns]]
        cells += [[name, *(f"{row[c]:.4g}" if c in row else "" for c in columns)] for name, row in rows.items()]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
        lines.append(f"\n{title}")
        for line in cells:
            first, rest = line[0].ljust(widths[0]), (c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))
            lines.append("  ".join([first, *rest]))
    return "\n".join(lines)
