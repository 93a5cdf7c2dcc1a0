"""Floating-point operations of a compiled program's matrix products, read from its text (optimised HLO).

XLA's own cost analysis counts a loop's body once and knows nothing of kernels. Here a body counts as often as it runs,
and kernels count by the shapes of their arrays.
"""

import collections
import functools
import math
import re

import numpy as np

from prm_jax.runs.hlo_accounting import CustomCall, Instruction, Program, Shape, custom_calls, shapes_of

_KERNEL_PRODUCTS = {
    # Of [tokens, features] with [vocabulary, features]: the backward passes make the logits again.
    "linear_logprob_forward": 1,
    "linear_logprob_backward": 3,
    "linear_logprob_backward_hidden": 2,
    # Of [queries, head_dim] with [keys, head_dim]; "dkv" is the last because it may compute "dq" too.
    "splash_fwd": 2,
    "splash_dq": 3,
    "splash_dkv": 4,
}


def operations(text: str) -> dict[str, float]:
    """Floating-point operations of one device in one execution, by where they are computed.

    Args:
      text: of a compiled program, ``jax.jit(f).lower(...).compile().as_text()``. A loop whose number of iterations the
        compiler does not know counts once, and every branch of a conditional counts.

    Returns:
      ``{"products": of XLA's dots and convolutions, "head": of the log-prob kernels, "attention": of splash attention's
      kernels}``; kernels only where there are any. Attention counts as causal without segments, in blocks of 512.
    """
    found = {"products": 0.0}
    program = Program(text)
    types: dict[str, dict[str, str]] = {}
    for one in program.instructions():
        if one.opcode in ("dot", "convolution"):
            if one.computation not in types:
                types[one.computation] = _result_types(program.computations[one.computation])
            found["products"] += _product(one, types[one.computation]) * math.prod(one.loops)
    for call in custom_calls(text):
        kind, count = _kernel(call)
        if kind:
            found[kind] = found.get(kind, 0.0) + count * call.times
    return found


def kernel_calls(text: str) -> dict[str, int]:
    """Executions of each kernel of a TPU program by its name; ``text`` as in ``operations``."""
    found: collections.Counter[str] = collections.Counter()
    for call in custom_calls(text):
        if call.target == "tpu_custom_call":
            found[_kernel_name(call)] += call.times
    return dict(sorted(found.items()))


def _kernel_name(call: CustomCall) -> str:
    """The name given to ``pallas_call``, without the transformations that wrap it: "f" of ".../jvp(f)/pallas_call"."""
    parts = [part for part in call.name.split("/") if part and part != "pallas_call"]
    return re.sub(r"^(?:\w+\()*([^()]*)\)*$", r"\1", parts[-1]) if parts else "unknown"


def _kernel(call: CustomCall) -> tuple[str, float]:
    """(kind, operations) of one execution of a kernel; ("", 0) for one that is not known."""
    name = _kernel_name(call)
    if name.startswith("linear_logprob"):
        # (tokens, row values, hidden [rows, features], head, ...)
        if len(call.operands) < 4 or name not in _KERNEL_PRODUCTS:
            return "", 0.0
        (rows, features), head = call.operands[2][1], call.operands[3][1]
        vocabulary = math.prod(head) // features
        return "head", 2.0 * rows * features * vocabulary * _KERNEL_PRODUCTS[name]
    splash = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", name)
    if splash:
        queries = max((shape for _, shape in call.operands if len(shape) >= 3), key=math.prod, default=())
        if not queries:
            return "", 0.0
        length = queries[-2]
        seen = (length + min(length, 512)) / 2
        return "attention", 2.0 * math.prod(queries) * seen * _KERNEL_PRODUCTS[f"splash_{splash.group(1)}"]
    return "", 0.0


def _result_types(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        match = re.match(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) [a-z][\w\-]*\(", line)
        if match:
            found[match.group(1)] = match.group(2)
    return found


def _product(one: Instruction, types: dict[str, str]) -> float:
    """Operations of a dot or a convolution; a multiplication and an addition are two."""
    written = re.search(rf" {one.opcode}\((.*?)\)(?:,|$)", one.line)
    names = [name.strip().split(" ")[-1].lstrip("%") for name in written.group(1).split(", ")] if written else []
    operands = [shapes_of(types.get(name, ""))[:1] for name in names[:2]]
    if len(operands) < 2 or not all(operands):
        return 0.0
    left, right, out = operands[0][0], operands[1][0], shapes_of(one.result)[0]
    if one.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.line)
        axes = [int(axis) for axis in contracted.group(1).split(",") if axis] if contracted else []
        return 2.0 * math.prod(out[1]) * math.prod(left[1][axis] for axis in axes)
    return _convolution(one.line, left, right, out)


def _convolution(line: str, left: Shape, right: Shape, out: Shape) -> float:
    """Of a convolution, as which the TPU compiler writes products; padding and dilation cost nothing."""
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", line)
    if labels is None:
        return 0.0
    of_left, of_right, of_out = labels.groups()
    window = _window(line)
    spatial = [label for label in of_out if label.isdigit()]
    pairs = 1
    for i, label in enumerate(spatial):
        size = right[1][of_right.index(label)]
        low, stride, dilation, spread = (values[i] if i < len(values) else d for values, d in window)
        found = (left[1][of_left.index(label)], out[1][of_out.index(label)], size)
        pairs *= _valid_pairs(found, low, stride, dilation, spread)
    groups = [
        int(m.group(1)) if (m := re.search(rf"{name}_group_count=(\d+)", line)) else 1 for name in ("feature", "batch")
    ]
    features, rows = left[1][of_left.index("f")], left[1][of_left.index("b")]
    written = right[1][of_right.index("o")]
    return 2.0 * features // groups[0] * written * rows // groups[1] * pairs


def _window(line: str) -> list[tuple[list[int], int]]:
    """(values per dimension, default) of low padding, stride, dilation of the left and of the right array."""
    written = re.search(r"window=\{([^}]*)\}", line)
    fields = dict(part.split("=", 1) for part in written.group(1).split()) if written else {}

    def numbers(name: str) -> list[int]:
        return [int(part.split("_")[0]) for part in fields[name].split("x")] if name in fields else []

    return [(numbers("pad"), 0), (numbers("stride"), 1), (numbers("lhs_dilate"), 1), (numbers("rhs_dilate"), 1)]


@functools.lru_cache(maxsize=1024)
def _valid_pairs(sizes: tuple[int, int, int], low: int, stride: int, dilation: int, spread: int) -> int:
    """Pairs of (output position, window position) at which there is an element, in one dimension."""
    read, written, window = sizes
    if low == 0 and dilation == 1 and stride * (written - 1) + spread * (window - 1) < read:
        return written * window
    at = np.arange(written)[:, None] * stride + np.arange(window)[None, :] * spread - low
    return int(((at >= 0) & (at % dilation == 0) & (at // dilation < read)).sum())
