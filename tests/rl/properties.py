"""Rows of the property table, and random arguments for them.

A row names a function, the kinds of its arguments, the axes of its results and its oracle in `oracles`; the
tests in `properties_test.py` do the rest. Axis letters are those of the code base, G is the axis of groups.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.rl import Mean

SIZES = {"B": 16, "T": 5, "S": 4, "G": 8, "C": 3, "E": 3, "2": 2}

# kind -> (axes, sampler of a float or int array of that shape)
_KINDS: dict[str, tuple[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]]] = {
    "logp": ("BT", lambda rng, n: 0.5 * rng.normal(size=n) - 1),
    "old": ("BT", lambda rng, n: 0.5 * rng.normal(size=n) - 1),
    "r": ("BT", lambda rng, n: rng.normal(size=n)),
    "v": ("BT", lambda rng, n: rng.normal(size=n)),
    "w": ("BT", lambda rng, n: rng.uniform(0, 2, n)),
    "class": ("BT", lambda rng, n: rng.integers(0, SIZES["C"], n)),
    "tok": ("BT", lambda rng, n: rng.integers(0, 2, n)),
    "logits": ("BTC", lambda rng, n: rng.normal(size=n)),
    "classes": ("BTC", lambda rng, n: rng.dirichlet(np.ones(n[-1]), n[:-1])),
    "a": ("B", lambda rng, n: rng.choice([0.0, 0.0, 0.25, 0.5, 1.0, 1.0], n)),
    "s": ("B", lambda rng, n: rng.normal(size=n)),
    "s2": ("B", lambda rng, n: rng.normal(size=n)),
    "s3": ("B", lambda rng, n: rng.normal(size=n)),
    "s4": ("B", lambda rng, n: rng.normal(size=n)),
    "below": ("B", lambda rng, n: -rng.uniform(0.1, 3, n)),
    "below2": ("B", lambda rng, n: -rng.uniform(0.1, 3, n)),
    "length": ("B", lambda rng, n: rng.integers(1, 9, n)),
    "at": ("B", lambda rng, n: rng.integers(-1, 2, n)),
    "at2": ("B", lambda rng, n: rng.integers(-1, 2, n)),
    "x": ("BS", lambda rng, n: rng.normal(size=n)),
    "p": ("BS", lambda rng, n: rng.uniform(0.02, 0.98, n)),
    "p2": ("BS", lambda rng, n: rng.uniform(0.02, 0.98, n)),
    "y": ("BS", lambda rng, n: rng.choice([0.0, 0.25, 0.875, 1.0], n)),
    "x2": ("BS2", lambda rng, n: rng.normal(size=n)),
    "count": ("BS", lambda rng, n: rng.integers(0, 9, n)),
    "answer": ("BS", lambda rng, n: rng.integers(-1, 3, n)),
    "parent": ("BS", lambda rng, n: np.stack([rng.integers(-1, k, n[:-1]) if k else -np.ones(n[:-1], int)
                                              for k in range(n[-1])], -1)),
    "ensemble": ("EB", lambda rng, n: rng.normal(size=n)),
    "groups": ("G", lambda rng, n: rng.random(n) < 0.5),
    "flag": ("B", lambda rng, n: rng.random(n) < 0.5),
    "flags": ("BS", lambda rng, n: rng.random(n) < 0.5),
}
MASKS = {"mask": "BT", "smask": "BS", "rows": "B", "ids": "B", "steps": "BT"}
GARBAGE = 99  # fills integer arrays where nothing is valid


@dataclasses.dataclass(frozen=True)
class Row:
    """One function of the table.

    Attributes:
      fn: the public function.
      args: its array arguments as "name=kind", or "kind" where the names agree.
      oracle: the same function in NumPy loops.
      out: axes of the results, one word for all leaves or one per leaf; "-" for scalars.
      grad: names of the arguments that receive gradients; all other floats must receive exactly none.
      kw: further keyword arguments, of both.
      shard: "rows" (rows are independent), "axis" (takes axis_name), "psum" (sums that add up over devices), both
        of the latter, or "none".
      whole_groups: a group must be on one device.
      empty: what every result is when all masks are empty; None for anything finite.
      reads: names of the arguments that are read even where a mask is empty.
      compacts: a row with holes gives what the row gives with the holes cut out.
    """

    fn: Callable[..., Any]
    args: str
    oracle: Callable[..., Any]
    out: str = "BT"
    grad: str = ""
    kw: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shard: Literal["rows", "axis", "psum", "axis psum", "none"] = "rows"
    whole_groups: bool = False
    empty: float | None = 0.0
    reads: str = ""
    compacts: bool = True

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.fn.__name__

    def __str__(self) -> str:
        """The test id: the function and its options."""
        options = [f"{v}" for k, v in self.kw.items() if isinstance(v, (str, bool))]
        given = [a.partition("=")[0] for a in self.args.split() if "=" in a]
        return "-".join([self.name, *options, *given])

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        """Argument name -> kind."""
        pairs = (a.partition("=") for a in self.args.split())
        return {name: kind or name for name, _, kind in pairs}

    def __hash__(self) -> int:
        """By identity: rows are made once."""
        return id(self)


def axes_of(kind: str) -> str:
    """Axis letters of a kind of argument."""
    return MASKS[kind] if kind in MASKS else _KINDS[kind][0]


def prefix_mask(rng: np.random.Generator, size: int) -> np.ndarray:
    """Right-padded rows; row 0 is empty, row 1 has one entry, row 2 is full."""
    lengths = rng.integers(0, size + 1, SIZES["B"])
    lengths[:3] = 0, 1, size
    return np.arange(size) < lengths[:, None]


def random_masks(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Masks of each kind that belong together; groups of several sizes, some empty, and rows in no group."""
    mask = prefix_mask(rng, SIZES["T"])
    steps = np.minimum(np.cumsum(rng.random(mask.shape) < 0.6, 1), SIZES["S"] - 1)
    return {
        "mask": mask,
        "smask": prefix_mask(rng, SIZES["S"]),
        "rows": rng.random(SIZES["B"]) < 0.8,
        "ids": rng.integers(-1, SIZES["G"] - 2, SIZES["B"]),
        "steps": np.where(mask, steps, -1),
    }


def draw(row: Row, seed: int, masks: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Random arguments of a row, by argument name; floats are float32."""
    rng = np.random.default_rng(seed)
    chosen = random_masks(rng) if masks is None else masks
    data = {}
    for name, kind in row.kinds.items():
        if kind in MASKS:
            data[name] = chosen[kind]
            continue
        axes, sampler = _KINDS[kind]
        array = sampler(rng, tuple(SIZES[a] for a in axes))
        data[name] = array.astype(np.float32) if array.dtype == np.float64 else array
    return data


def valid_of(row: Row, data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Axes -> bool array of what is valid there, for the axes of the row's masks."""
    masks = {kind: data[name] for name, kind in row.kinds.items() if kind in MASKS}
    size = next((m.shape[0] for m in masks.values()), SIZES["B"])
    rows, out = np.ones(size, bool), {}
    if "steps" in masks:
        steps = masks["steps"]
        out["BT"] = steps >= 0
        out["BS"] = (steps[:, :, None] == np.arange(SIZES["S"])).any(1)
    if "mask" in masks:
        out["BT"] = masks["mask"]
        rows &= masks["mask"].any(1)
    if "smask" in masks:
        out["BS"] = masks["smask"]
        rows &= masks["smask"].any(1)
    if "rows" in masks:
        rows &= masks["rows"]
    if "ids" in masks:
        rows &= masks["ids"] >= 0
    return {**out, "B": rows} if masks else {}


def poison(row: Row, data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arguments with NaN (or a wild integer) wherever nothing is valid."""
    valid = valid_of(row, data)
    out = dict(data)
    for name, kind in row.kinds.items():
        axes = axes_of(kind)
        key = next((k for k in ("BT", "BS", "B") if axes.startswith(k)), None)
        if kind in MASKS and kind != "ids" or key not in valid or data[name].dtype == bool or name in row.reads.split():
            continue
        keep = valid[key].reshape(valid[key].shape + (1,) * (data[name].ndim - valid[key].ndim))
        floating = np.issubdtype(data[name].dtype, np.floating)
        if kind == "ids":  # the id of an invalid row may be anything at all
            keep = valid["B"]
        out[name] = np.where(keep, data[name], np.nan if floating else GARBAGE).astype(data[name].dtype)
    return out


def result_leaves(row: Row, result: Any) -> list[tuple[str, Any]]:
    """(axes, array) of each leaf of a result; "" for scalars."""
    leaves = jax.tree.leaves(result)
    words = row.out.replace("-", "").split(" ") if " " in row.out else [row.out.replace("-", "")] * len(leaves)
    assert len(words) == len(leaves), (row.out, len(leaves))
    return [(word, np.asarray(leaf)) for word, leaf in zip(words, leaves, strict=True)]


def call(row: Row, data: Mapping[str, Any], **more: Any) -> Any:
    """The function of the row on its arguments by name."""
    return row.fn(**data, **row.kw, **more)


def call_oracle(row: Row, data: Mapping[str, np.ndarray]) -> Any:
    """The loop oracle, on float64."""
    wide = {k: v.astype(np.float64) if np.issubdtype(v.dtype, np.floating) else v for k, v in data.items()}
    return row.oracle(**wide, **row.kw)


def comparable(result: Any) -> Any:
    """A loss as (total, weight), as the oracles give it; anything else unchanged."""
    return (result.total, result.weight) if isinstance(result, Mean) else result


def objective(row: Row, result: Any, weights: Callable[[tuple[int, ...]], np.ndarray]) -> Any:
    """A scalar to differentiate: a loss's total, or a fixed random combination of the float results."""
    if isinstance(result, Mean):
        return result.total
    if isinstance(result, tuple) and row.out == "-":
        return result[0]
    leaves = [x for x in jax.tree.leaves(result) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    return sum((np.asarray(weights(np.shape(x))) * x).sum() for x in leaves)
