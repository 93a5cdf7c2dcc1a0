"""Facts about the code base, printed for readers and enforced by nobody but tests/rooms_test.py: `make facts`.

Files and their lengths, functions and their lengths and parameters, import cycles, public names of each room.
"""

import ast
import functools
import importlib
import pathlib
import statistics
import sys
from collections.abc import Iterator

ROOMS = (
    "pallas", "rl", "stats", "search", "models", "rollouts", "verifiers", "data", "runs", "prm", "prime", "commands",
)  # fmt: skip
"""From the bottom up: a room may import only rooms before it."""

ROOT = pathlib.Path(__file__).resolve().parents[1] / "prm_jax"
LONG_FUNCTION, MANY_PARAMETERS = 60, 10


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: pathlib.Path, known: dict[str, pathlib.Path]) -> set[str]:
    """Modules of the package that a file imports anywhere, type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {module for module in found if module in known and module != name}


@functools.cache
def graph() -> dict[str, set[str]]:
    """Every module with the modules that it imports."""
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def room_of(module: str) -> str:
    """"rl" of prm_jax.rl.losses; "" for a module of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def upward_imports() -> list[tuple[str, str]]:
    """Imports from a room into one above it: (importing module, imported module)."""
    return [
        (module, other)
        for module, others in graph().items()
        for other in sorted(others)
        if room_of(module) and room_of(other) and ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]


def cycles() -> list[list[str]]:
    """Groups of files that import each other in a circle; packages' ``__init__`` files only collect names."""
    known = modules()
    edges = {
        name: {other for other in others if known[other].name != "__init__.py"}
        for name, others in graph().items()
        if known[name].name != "__init__.py"
    }
    order: list[str] = []
    seen: set[str] = set()

    def visit(start: str, of: dict[str, set[str]], out: list[str]) -> None:
        stack: list[tuple[str, Iterator[str]]] = [(start, iter(sorted(of[start])))]
        seen.add(start)
        while stack:
            node, rest = stack[-1]
            following = next((other for other in rest if other not in seen), None)
            if following is None:
                out.append(node)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(of[following]))))

    for name in edges:
        if name not in seen:
            visit(name, edges, order)
    backwards: dict[str, set[str]] = {name: set() for name in edges}
    for name, others in edges.items():
        for other in others:
            backwards[other].add(name)
    seen.clear()
    groups = []
    for name in reversed(order):
        if name not in seen:
            group: list[str] = []
            visit(name, backwards, group)
            if len(group) > 1:
                groups.append(sorted(group))
    return groups


@functools.cache
def functions() -> list[tuple[int, int, str]]:
    """(lines, parameters without self, module:function) of every function."""
    found = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                own = [argument for argument in arguments if argument.arg not in ("self", "cls")]
                found.append(((node.end_lineno or node.lineno) - node.lineno + 1, len(own), f"{name}:{node.name}"))
    return found


def long_functions() -> list[tuple[int, int, str]]:
    """Functions over 60 lines, docstring included."""
    return sorted((f for f in functions() if f[0] > LONG_FUNCTION), reverse=True)


def wide_functions() -> list[tuple[int, int, str]]:
    """Functions with more than 10 parameters."""
    return sorted((f for f in functions() if f[1] > MANY_PARAMETERS), key=lambda f: -f[1])


def public_names(room: str) -> list[str]:
    """The names that a room exports."""
    return sorted(getattr(importlib.import_module(f"prm_jax.{room}"), "__all__", ()))


def main() -> None:
    """Prints everything."""
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()]
    of_functions = [lines for lines, _, _ in functions()]

    def spread(values: list[int]) -> str:
        return f"median {statistics.median(values):g}, 90th percentile {statistics.quantiles(values, n=10)[-1]:g}"

    print(f"files                      {len(lengths)}, {sum(lengths)} lines; lines per file: {spread(lengths)}")
    print(f"functions                  {len(of_functions)}; lines per function: {spread(of_functions)}")
    print(f"functions over {LONG_FUNCTION} lines    {len(long_functions())}")
    for lines, _, name in long_functions():
        print(f"  {lines:4} {name}")
    print(f"functions over {MANY_PARAMETERS} params   {len(wide_functions())}")
    for _, count, name in wide_functions():
        print(f"  {count:4} {name}")
    print(f"import cycles              {len(cycles())}")
    for group in cycles():
        print("  " + " <-> ".join(group))
    print(f"imports into a room above  {len(upward_imports())}")
    for pair in upward_imports():
        print("  {} -> {}".format(*pair))
    print("public names per room")
    for room in ROOMS:
        print(f"  {room:10} {len(public_names(room))}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT.parent))
    main()
