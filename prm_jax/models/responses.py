"""Sampled responses: packed into rows for training, and decoded to text; host-side NumPy."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.errors import UserError
from prm_jax.models import stopping
from prm_jax.models.tokenizer import Tokenizer

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """Responses to P prompts, G each, prompt-major: row b answers prompt b // G.

    Attributes:
      tokens: [B, R] i32, response tokens; 0 after the end.
      mask: [B, R] bool, True up to and including the token that ended the response.
      logp: [B, R] f32 <= 0, log-probability of each token under softmax(logits / temperature) before
        truncation (temperature 1 for greedy decoding); 0 where the mask is False.
      finished: [B] bool, False where the response was cut off at R tokens.
      log_mass: [B, R] f32 <= 0, log of the probability that truncation keeps, so that ``logp - log_mass`` is the
        log-probability with which a token was drawn; None when unknown.
    """

    tokens: Array
    mask: Array
    logp: Array
    finished: Array
    log_mass: Array | None = None


def pack(prompts: Sequence[Sequence[int]], samples: Samples, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs prompts and responses into rows [prompt][response][padding], on the host.

    Args:
      prompts: the P prompts' token ids.
      samples: their B = P * G responses, prompt-major.
      length: T, at least that of every row.

    Returns:
      (tokens [B, T] i32, 0 after the end; mask [B, T] bool, True on response tokens).

    Raises:
      UserError: the rows are not a multiple of the prompts, or a row is longer than `length`.
    """
    response, mask = np.asarray(samples.tokens), np.asarray(samples.mask)
    rows, steps = response.shape
    if not prompts or rows % len(prompts):
        raise UserError(f"{rows} responses are not a multiple of {len(prompts)} prompts")
    prompt, prompt_lengths = pad_right(prompts, max(map(len, prompts)))
    prompt_lengths = np.repeat(prompt_lengths, rows // len(prompts))
    counts = mask.sum(axis=1)
    longest = int((prompt_lengths + counts).max())
    if longest > length:
        raise UserError(f"a prompt and its response have {longest} tokens, but rows have {length}; use longer rows")
    tokens = np.zeros((rows, max(length, prompt.shape[1])), np.int32)
    tokens[:, : prompt.shape[1]] = np.repeat(prompt, rows // len(prompts), axis=0)
    out_mask = np.zeros(tokens.shape, bool)
    row, step = np.nonzero(np.arange(steps) < counts[:, None])
    column = prompt_lengths[row] + step
    tokens[row, column] = response[row, step]
    out_mask[row, column] = True
    return tokens[:, :length], out_mask[:, :length]


def response_texts(
    samples: Samples,
    tokenizer: Tokenizer,
    *,
    stop: str | Sequence[str | Sequence[int]] = (),
    keep_stop: bool = True,
) -> list[str]:
    """The responses as text, without special tokens.

    Args:
      samples: B rows.
      tokenizer: decodes them.
      stop: as given to `generate`.  The text ends exactly at the first stop string, even inside a token.
      keep_stop: whether that string stays in the text.

    Returns:
      B texts.
    """
    strings = [entry for entry in ([stop] if isinstance(stop, str) else stop) if isinstance(entry, str)]
    tokens, mask = np.asarray(samples.tokens), np.asarray(samples.mask)
    texts = (tokenizer.decode(row[kept].tolist(), skip_special=True) for row, kept in zip(tokens, mask, strict=True))
    return [stopping.cut_text(text, strings, keep_stop=keep_stop) for text in texts]


def drop_stop(
    samples: Samples,
    strings: Sequence[str],
    sequences: Sequence[tuple[int, ...]],
    tokenizer: Tokenizer | None,
) -> Samples:
    """Removes the stop string or sequence that ended a response, on the host.

    Args:
      samples: B rows, each up to and including what ended it.
      strings: stop strings, which need the tokenizer.
      sequences: stop sequences; single tokens, such as end-of-text tokens, stay.
      tokenizer: gives the text of the tokens.

    Returns:
      Samples without the tokens that begin inside the stop string or sequence.
    """
    sequences = [sequence for sequence in sequences if len(sequence) > 1]
    if not strings and not sequences:
        return samples
    tokens, mask = np.asarray(samples.tokens), np.array(samples.mask)
    for row in np.nonzero(np.asarray(samples.finished))[0]:
        ids = tokens[row, mask[row]].tolist()
        keep = len(ids) - max((len(s) for s in sequences if tuple(ids[-len(s) :]) == s), default=0)
        if strings and tokenizer is not None:
            keep = min(keep, _before_string(ids, strings, tokenizer))
        mask[row, keep:] = False
    log_mass = None if samples.log_mass is None else jnp.where(mask, samples.log_mass, 0.0)
    return Samples(
        jnp.where(mask, tokens, 0), jnp.asarray(mask), jnp.where(mask, samples.logp, 0.0), samples.finished, log_mass
    )


def pad_right(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as one array: (right-padded with zeros [P, length] i32, lengths [P] i32)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), length), np.int32)
    padded[np.arange(length) < lengths[:, None]] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return padded, lengths


def _before_string(ids: Sequence[int], strings: Sequence[str], tokenizer: Tokenizer) -> int:
    """Number of tokens that begin before the first completed stop string; all if there is none."""
    pieces = [stopping.text_bytes(token, strings, tokenizer) for token in ids]
    text = b"".join(pieces)
    found = [(text.find(s.encode()) + len(s.encode()), -len(s.encode())) for s in strings if s.encode() in text]
    if not found:
        return len(ids)
    begin = sum(min(found))
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    return int(np.searchsorted(starts, begin))
