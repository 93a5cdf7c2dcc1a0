"""Options of quantised frozen weights; imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated, Literal

from prm_jax.option_ranges import at_least

Bits = Literal["none", "int8", "int4", "int2"]
BitsOrKeep = Literal["none", "keep", "int8", "int4", "int2"]
"""With "keep": as a GGUF file stores them."""
Scheme = Literal["symmetric", "asymmetric", "progressive", "balanced", "centred"]
Fit = Literal["largest", "mse", "normal"]
Transform = Literal["hadamard", "folded"]

PREFIX = "--model."
"""Of the options' names on the command line, in commands whose model has options of its own."""

_GROUP = 32
"""Inputs per scale in 4 and 2 bits, unless the options say otherwise."""


@dataclass(frozen=True)
class QuantizationOptions:
    """How weights are quantised."""

    group: Annotated[int, at_least(-1)] = -1
    """Neighbouring inputs of a kernel that share a scale; 0: all inputs; -1: 32 in 4 and 2 bits, all in 8."""
    scheme: Literal["symmetric", "asymmetric", "progressive", "balanced", "centred"] = "symmetric"
    """Integers and their values. symmetric: whole numbers around 0; asymmetric: with a zero point; progressive: int8
    per output, then 4 bits per group with integer scales (QServe); balanced: five levels at 2 bits (ABQ-LLM); centred:
    odd multiples of half a step (QuEST)."""
    fit: Literal["largest", "mse", "normal"] = "largest"
    """Of the scales. largest: the largest weight is representable; mse: least squared error among clipping ratios;
    normal: optimal for normal weights, with the scheme centred (QuEST)."""
    transform: Literal["none", "hadamard", "folded"] = "none"
    """Before rounding. hadamard: rotate kernels and activations in blocks (QuEST); folded: scales and rotations that
    neighbouring layers absorb, fitted to the rounding error (OSTQuant)."""
    rank: Annotated[int, at_least(0)] = 0
    """Rank of a low-rank correction of the rounding error (ZeroQuant-V2); 0: none."""
    embeddings: bool = False
    """Quantise embedding and head too, in 8 bits with a scale per row."""

    def group_of(self, bits: int) -> int | None:
        """The group for a number of bits; None: all inputs."""
        if self.group == -1:
            return None if bits == 8 else _GROUP
        return self.group or None

    def problems(self, bits: int, prefix: str = PREFIX) -> list[str]:
        """What does not fit together; `prefix` as the options are spelled on the command line."""
        found, name = [], f"{prefix}quantization"
        if bits not in (8, 4, 2):
            found.append(f"{bits} bits are not supported: choose 8, 4 or 2")
        if self.scheme == "progressive" and (bits != 4 or self.group_of(bits) is None):
            found.append(f"{name}.scheme progressive has 4 bits in groups: use int4 and {name}.group 32")
        if self.scheme == "progressive" and self.fit != "largest":
            found.append(f"{name}.scheme progressive fits its scales to the largest weight: leave {name}.fit out")
        if self.scheme == "balanced" and bits != 2:
            found.append(f"{name}.scheme balanced has five levels in 2 bits, found {bits}: use int2")
        if self.fit == "normal" and self.scheme != "centred":
            found.append(f"{name}.fit normal is for {name}.scheme centred, found {self.scheme}")
        return found


def bits_of(name: BitsOrKeep) -> int | None:
    """The number of bits; None for "none" and "keep"."""
    return None if name in ("none", "keep") else int(name.removeprefix("int"))
