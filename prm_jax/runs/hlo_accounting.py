"""What a compiled program sends between devices and which custom calls it makes, read from its text (optimised HLO).

XLA's own cost analysis has no figures for communication and counts a loop's body once; here a body counts as often as
it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
)  # fmt: skip
Shape = tuple[str, tuple[int, ...]]
"""(dtype, dimensions)."""

_BITS = {"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "f4e2m1fn": 4, "f8e8m0fnu": 8, "bf16": 16}
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,<=]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \((.*)\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_BEGINS = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|branch_computations|true_computation|false_computation)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, from the view of one device.

    Attributes:
      kind: one of ``KINDS``.
      payload: bytes of the largest of its arrays, in one execution: what an all-gather or all-reduce returns, what a
        reduce-scatter, an all-to-all or a collective-permute reads.
      group: number of devices that take part together.
      loops: iterations of the loops around it, outermost first.
      shapes: its result, one entry per array.
      name: where it comes from, as in ``jax.named_scope``; "" if the compiler lost it.
    """

    kind: str
    payload: int
    group: int
    loops: tuple[int, ...]
    shapes: tuple[Shape, ...]
    name: str

    @property
    def times(self) -> int:
        """Executions."""
        return math.prod(self.loops)

    @property
    def sent(self) -> int:
        """Bytes that a device must send in all executions: (n - 1) / n of the payload, twice for an all-reduce."""
        if self.kind == "collective-permute":
            return self.payload * self.times
        ways = 2 if self.kind == "all-reduce" else 1
        return ways * self.payload * (self.group - 1) // self.group * self.times


@dataclasses.dataclass(frozen=True)
class CustomCall:
    """One custom call in a program.

    Attributes:
      target: "tpu_custom_call" for a Pallas kernel on TPUs.
      name: where it comes from.
      times: executions.
      operands: its arrays, where the text says them.
    """

    target: str
    name: str
    times: int
    operands: tuple[Shape, ...] = ()


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One place where an instruction runs.

    Attributes:
      computation: the one that it is written in.
      opcode: such as "dot".
      result: its type as text.
      line: its text.
      loops: iterations of the loops around it, outermost first.
    """

    computation: str
    opcode: str
    result: str
    line: str
    loops: tuple[int, ...]

    @property
    def name(self) -> str:
        """Where it comes from; "" if the compiler lost it."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found.group(1) if found else ""


def collectives(text: str) -> list[Collective]:
    """The collectives of a program, in the order of its text.

    Args:
      text: of a compiled program, ``jax.jit(f).lower(...).compile().as_text()``. A loop whose number of iterations the
        compiler does not know counts once, and every branch of a conditional counts.
    """
    program = Program(text)
    found: list[tuple[str, Collective]] = []
    for one in program.instructions():
        collective = _collective(one, program)
        if collective is not None:
            chain = re.search(r'chain_id="\d+"', one.line)
            channel = re.search(r"channel_id=\d+", one.line)
            found.append((f"{chain.group()} {channel and channel.group()}" if chain else "", collective))
    return list(_merged(found))


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes that a device must send, by kind of collective; see ``Collective.sent``.

    Args:
      text: see ``collectives``.

    Returns:
      Only the kinds that occur; the sum of the values is the program's communication.
    """
    total: collections.Counter[str] = collections.Counter()
    for one in collectives(text):
        total[one.kind] += one.sent
    return dict(total)


def custom_calls(text: str) -> list[CustomCall]:
    """The custom calls of a program, one entry per call in its text; ``text`` as in ``collectives``."""
    found = []
    for one in Program(text).instructions():
        target = re.search(r'custom_call_target="([^"]*)"', one.line)
        if one.opcode == "custom-call" and target:
            layouts = re.search(r"operand_layout_constraints=\{(.*?\})\}", one.line)
            operands = tuple(shapes_of(layouts.group(1))) if layouts else ()
            found.append(CustomCall(target.group(1), one.name, math.prod(one.loops), operands))
    return found


def largest_arrays(text: str, count: int = 10) -> list[tuple[int, Shape]]:
    """(bytes, shape) of the largest different arrays that a device computes, fused intermediate values included."""
    found = {}
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match and match.group(2) not in ("parameter", "get-tuple-element", "tuple", "bitcast", "while"):
            found.update({shape: _bytes(shape) for shape in shapes_of(match.group(1))})
    return sorted(((size, shape) for shape, size in found.items()), reverse=True)[:count]


class Program:
    """The computations of a program's text, walked from the entry.

    Attributes:
      computations: name -> its instructions, one per line.
      parameters: name -> its parameters' types as text.
      entry: name of the first one.
      devices: number that the program was compiled for.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[str]] = {}
        self.parameters: dict[str, str] = {}
        self.entry = ""
        counts = [re.search(rf"\b{what}=(\d+)", text[:100_000]) for what in ("num_partitions", "replica_count")]
        self.devices = math.prod(int(found.group(1)) for found in counts if found)
        lines: list[str] = []
        for line in text.splitlines():
            header = _COMPUTATION.match(line)
            if header:
                lines = self.computations[header.group(2)] = []
                self.parameters[header.group(2)] = header.group(3)
                self.entry = header.group(2) if header.group(1) else self.entry
            elif _BEGINS.match(line):
                lines.append(line)
            elif lines and line.strip() not in ("", "}"):  # continues a long instruction
                lines[-1] += line

    def instructions(self) -> Iterator[Instruction]:
        """Every instruction that runs, once per place that calls its computation."""
        return self._walk(self.entry, ())

    def _walk(self, computation: str, loops: tuple[int, ...]) -> Iterator[Instruction]:
        for line in self.computations.get(computation, ()):
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            result, opcode = match.groups()
            yield Instruction(computation, opcode, result, line, loops)
            if opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", line)
                if body:
                    yield from self._walk(body.group(1), (*loops, self._iterations(line)))
            elif opcode in ("fusion", "call", "conditional", "async-start"):
                for called in _CALLED.finditer(line):
                    for name in re.findall(r"[\w.\-]+", called.group(1)):
                        yield from self._walk(name, loops)

    def _iterations(self, line: str) -> int:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        if known:
            return int(known.group(1))
        condition, body = (
            self.computations.get(found.group(1) if found else "", [])
            for found in (re.search(rf"{name}=%?([\w.\-]+)", line) for name in ("condition", "body"))
        )
        bounds = [int(x) for one in condition for x in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", one)]
        return math.ceil((max(bounds, default=1) or 1) / _increment(condition, body))


def _increment(condition: Sequence[str], body: Sequence[str]) -> int:
    """What a loop adds to the counter that its condition reads; 1 where the text does not say."""
    read = [found.group(1) for one in condition if (found := re.search(r"get-tuple-element\(.*?\), index=(\d+)", one))]
    lines = {found.group(1): one for one in body if (found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", one))}
    root = next((found.group(1) for one in body if (found := re.match(r"\s*ROOT .*? tuple\((.*?)\)", one))), "")
    results = re.findall(r"%([\w.\-]+)", re.sub(r"/\*.*?\*/", "", root))
    if len(read) != 1 or int(read[0]) >= len(results):
        return 1
    added = re.search(r" add\(%([\w.\-]+), %([\w.\-]+)\)", lines.get(results[int(read[0])], ""))
    constants = [
        int(found.group(1))
        for name in (added.groups() if added else ())
        if (found := re.search(r" constant\((\d+)\)", lines.get(name, "")))
    ]
    return max([1, *constants])


def _collective(one: Instruction, program: Program) -> Collective | None:
    kind = one.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    shapes = shapes_of(one.result)
    if one.opcode.endswith("-start") and kind in ("all-gather", "collective-permute") and one.result.startswith("("):
        # (operands, results, ...): the two have equally many arrays; what follows are counters.
        arrays = [shape for shape in shapes if shape[1]]
        shapes = arrays[len(arrays) // 2 :]
    group = _group(one.line, program.devices)
    payload = sum(_bytes(shape) for shape in shapes)
    if kind == "reduce-scatter":
        payload *= group
    elif kind == "all-reduce" and one.computation.startswith("all-reduce-scatter"):
        # How the TPU compiler writes a reduce-scatter: a fusion that keeps a slice of the sum.
        kind, payload = "reduce-scatter", sum(map(_bytes, shapes_of(program.parameters[one.computation])))
    return Collective(kind, payload, group, one.loops, tuple(shapes), one.name)


def _merged(found: Sequence[tuple[str, Collective]]) -> Iterator[Collective]:
    """Leaves one of the fusions into which the TPU compiler splits an asynchronous collective: they share a chain.

    Those in between may be in an inner loop, which the collective overlaps with and is not part of.
    """
    kept: dict[object, Collective] = {}
    for i, (chain, one) in enumerate(found):
        key = chain or i
        if key not in kept or (one.times, -one.payload) < (kept[key].times, -kept[key].payload):
            kept[key] = one
    return iter(kept.values())


def _group(line: str, devices: int) -> int:
    """Devices per group, of the three ways in which HLO writes ``replica_groups``; all devices without one."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota.group(2))
    mesh = re.search(r"replica_groups=(?:@?\w*)?mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'?([\w]+)'?=(\d+)", mesh.group(1))}
        return math.prod(_part(axis, sizes) for axis in mesh.group(2).split(",") if axis.strip())
    return max(devices, 1)


def _part(axis: str, sizes: dict[str, int]) -> int:
    """Size of ``'axis'``, or of a part of it, ``'axis':(before)size``."""
    part = re.search(r":\(\d+\)(\d+)", axis)
    return int(part.group(1)) if part else sizes[axis.strip().strip("'")]


def shapes_of(text: str) -> list[Shape]:
    """The arrays of a type's text, of which a tuple has several."""
    return [
        (dtype, tuple(int(size.lstrip("<=")) for size in dims.split(",") if size))
        for dtype, dims in _ARRAY.findall(text)
    ]


def _bytes(shape: Shape) -> int:
    dtype, dims = shape
    bits = _BITS.get(dtype)
    if bits is None:
        bits = int(re.sub(r"^[a-z]+(\d+).*", r"\1", dtype))
    return math.ceil(math.prod(dims) * bits / 8)
