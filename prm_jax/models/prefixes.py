"""Keys and values kept between calls of ``generate``, so that prompts which extend earlier ones need no prefill.

A search over steps samples continuations of a prompt, then continuations of the prompt plus one of its responses, and
so on: all but the last token of the longer prompt have been through the model before.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.models import decode
from prm_jax.models.config import ModelConfig
from prm_jax.models.decode import KeyValues, Prefix
from prm_jax.models.decode_loop import ResponseSpec, write_responses
from prm_jax.models.responses import Samples, pad_right
from prm_jax.models.transformer import Params

Array = jax.Array
Layers = tuple[KeyValues, ...]


class _Place(NamedTuple):
    """Location in a source of the keys and values of all but the last token of a prompt."""

    prompt: int  # the first columns are in this row of the source's prompts
    columns: int  # number of those columns
    row: int  # the rest is in this row of its responses


@dataclasses.dataclass
class _Source:
    """Keys and values of one call."""

    prompts: Layers  # N = P
    responses: Layers  # N = P * G; () of a prefill alone
    places: dict[tuple[int, ...], _Place]

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.prompts, self.responses)))


class PrefixStore:
    """Keeps keys and values of the prompts and responses of one model's latest calls.

    Args:
      max_bytes: memory limit; the oldest calls are evicted first. A call keeps all its prompts and responses,
        `num_layers * 2 * num_kv_heads * head_dim` numbers per column.

    Attributes:
      hits: prompts whose keys and values were found.
      misses: prompts that were prefilled.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._sources: collections.deque[_Source] = collections.deque()
        self._params: Params | None = None

    @property
    def nbytes(self) -> int:
        """Memory in use."""
        return sum(source.nbytes for source in self._sources)

    def generate(
        self,
        config: ModelConfig,
        params: Params,
        prompts: Sequence[Sequence[int]],
        columns: int,
        prompt_ids: np.ndarray,
        key: Array,
        spec: ResponseSpec,
        *,
        repack: bool,
    ) -> Samples:
        """``generate_arrays`` for prompts of at most ``columns`` tokens; clears the store if ``params`` changed."""
        if params is not self._params:
            self._sources.clear()
            self._params = params
        before, last = self._assemble(config, params, prompts, columns)
        ids = jnp.asarray(prompt_ids)
        found, after, responses = _generate(config, params, before, last, ids, key, spec, repack=repack)
        self._keep(prompts, found, after, responses)
        return found

    def _assemble(
        self, config: ModelConfig, params: Params, prompts: Sequence[Sequence[int]], columns: int
    ) -> tuple[Prefix, Array]:
        """(all but the last token of each prompt, the last tokens [P])."""
        wanted = [tuple(prompt) for prompt in prompts]
        found = [self._find(prompt) for prompt in wanted]
        missing = list(dict.fromkeys(prompt for prompt, one in zip(wanted, found, strict=True) if one is None))
        self.hits += sum(one is not None for one in found)
        self.misses += len(wanted) - sum(one is not None for one in found)
        if missing:
            source = _read(config, params, missing, columns)
            found = [one or (source, source.places[prompt]) for prompt, one in zip(wanted, found, strict=True)]
        layers = None
        by_source: dict[int, _Source] = {id(one[0]): one[0] for one in found if one is not None}
        for source in by_source.values():
            here = np.array([one is not None and one[0] is source for one in found])
            places = np.array([one[1] if one and one[0] is source else _Place(0, 0, 0) for one in found], np.int32)
            layers = _gather(source.prompts, source.responses, places, here, layers, columns=columns)
        assert layers is not None
        lengths = jnp.array([len(prompt) - 1 for prompt in wanted], jnp.int32)
        return Prefix(layers, lengths), jnp.array([prompt[-1] for prompt in wanted], jnp.int32)

    def _find(self, prompt: tuple[int, ...]) -> tuple[_Source, _Place] | None:
        for source in reversed(self._sources):
            if prompt in source.places:
                return source, source.places[prompt]
        return None

    def _keep(self, prompts: Sequence[Sequence[int]], samples: Samples, after: Layers, responses: Layers) -> None:
        tokens, mask = np.asarray(samples.tokens), np.asarray(samples.mask)
        count = len(tokens) // len(prompts)
        places = {}
        for p, prompt in enumerate(map(tuple, prompts)):
            places[prompt] = _Place(p, len(prompt) - 1, 0)
            for row in range(p * count, (p + 1) * count):
                written = tuple(tokens[row][mask[row]].tolist())
                if written:
                    places[prompt + written] = _Place(p, len(prompt), row)
        self._sources.append(_Source(after, responses, places))
        while self._sources and self.nbytes > self.max_bytes:
            self._sources.popleft()


def _read(config: ModelConfig, params: Params, prompts: Sequence[tuple[int, ...]], columns: int) -> _Source:
    """Prefills prompts; their number is rounded up, so that few shapes are compiled."""
    size = 1 << max(len(prompts) - 1, 0).bit_length()
    tokens, lengths = pad_right([*prompts, *[prompts[-1]] * (size - len(prompts))], columns)
    layers = _prefill(config, params, tokens, lengths)
    return _Source(layers, (), {prompt: _Place(p, len(prompt) - 1, 0) for p, prompt in enumerate(prompts)})


@functools.partial(jax.jit, static_argnames="config")
def _prefill(config: ModelConfig, params: Params, tokens: Array, lengths: Array) -> Layers:
    return decode.prefill(config, params, tokens, lengths)[1].layers


@functools.partial(jax.jit, static_argnames="columns")
def _gather(
    prompts: Layers, responses: Layers, places: Array, here: Array, rest: Layers | None, *, columns: int
) -> Layers:
    """Rows of the source where ``here`` is True, and of ``rest`` elsewhere; ``columns`` columns."""
    prompt, shared, row = (places[:, i] for i in range(3))
    column = jnp.arange(columns)

    def layer(number: int) -> KeyValues:
        parts = []
        for name, axis in (("k", 3), ("v", 2)):
            shape = (1, 1, 1, columns) if axis == 3 else (1, 1, columns, 1)
            whole = jnp.take(getattr(prompts[number], name)[prompt], column, axis=axis, mode="clip")
            if responses:
                own = getattr(responses[number], name)[row]
                back = jnp.clip(column - shared[:, None], 0, own.shape[axis] - 1).reshape(-1, *shape[1:])
                inside = (column < shared[:, None]).reshape(-1, *shape[1:])
                whole = jnp.where(inside, whole, jnp.take_along_axis(own, back, axis=axis))
            if rest is not None:
                whole = jnp.where(here[:, None, None, None], whole, getattr(rest[number], name))
            parts.append(whole)
        return KeyValues(*parts)

    return tuple(layer(number) for number in range(len(prompts)))


@functools.partial(jax.jit, static_argnames=("config", "repack"))
def _generate(
    config: ModelConfig,
    params: Params,
    before: Prefix,
    last: Array,
    prompt_ids: Array,
    key: Array,
    spec: ResponseSpec,
    *,
    repack: bool,
) -> tuple[Samples, Layers, Layers]:
    """(samples, keys and values of the whole prompts, keys and values of the responses)."""
    packed = decode.prepare(config, params, repack=repack)
    single = decode.init_suffix(config, last.shape[0], 1)
    hidden, single = decode.decode_step(config, packed, before, single, last, jnp.int32(0))
    prefix = _append(before, single)
    found, responses = write_responses(config, packed, hidden, prefix, prompt_ids, key, spec)
    return found, prefix.layers, responses


def _append(prefix: Prefix, single: Layers) -> Prefix:
    """The prefix with one more column per row."""
    layers = []
    for old, new in zip(prefix.layers, single, strict=True):
        here = jnp.arange(old.k.shape[3]) == prefix.lengths[:, None]
        layers.append(
            KeyValues(
                jnp.where(here[:, None, None, :], new.k, old.k), jnp.where(here[:, None, :, None], new.v, old.v)
            )
        )
    return Prefix(tuple(layers), prefix.lengths + 1)
