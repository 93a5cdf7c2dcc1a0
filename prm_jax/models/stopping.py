"""When a response ends: end-of-text tokens, token sequences and strings as automata that run on the device.

A stop string is matched on bytes, independently of token boundaries: the automaton of the strings is
lifted from bytes to whole tokens once on the host, and each decoding step is then one table look-up per row
(Aho and Corasick, CACM 18(6), 1975).
"""

import functools
from collections.abc import Sequence

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.tokenizer import Tokenizer


def stop_tables(
    strings: tuple[str, ...],
    sequences: tuple[tuple[int, ...], ...],
    vocab_size: int,
    tokenizer: Tokenizer | None,
) -> tuple[np.ndarray, ...]:
    """The automata of a generation: one for token sequences, and one for strings if there are any.

    Args:
      strings: from `check_stop`; they need the tokenizer.
      sequences: from `check_stop`.
      vocab_size: V of the model.
      tokenizer: gives the text of each token.

    Returns:
      One or two tables [states, V] i32 as `token_table`, with the number of states padded to a power of two,
      so that most sets of stop strings share a compilation.

    Raises:
      UserError: strings without a tokenizer.
    """
    tables = [token_table(sequences, vocab_size)]
    if strings:
        if tokenizer is None:
            raise UserError(f"the stop string {strings[0]!r} needs a tokenizer: options=DecodeOptions(tokenizer=...)")
        tables.append(_text_table(strings, tokenizer, vocab_size))
    return tuple(_fill_up(table) for table in tables)


def token_table(sequences: Sequence[Sequence[int]], vocab_size: int) -> np.ndarray:
    """The automaton of token sequences; an end-of-text token is a sequence of one.

    Args:
      sequences: token ids in [0, vocab_size), each sequence non-empty.
      vocab_size: V.

    Returns:
      [states, V] i32: the next state from each state and token.  Rows begin in state 0; the last state is
      reached when a sequence is complete, and never left.
    """
    transitions, symbols = _automaton([tuple(sequence) for sequence in sequences])
    kinds = np.full(vocab_size, len(symbols), np.int32)
    kinds[symbols] = np.arange(len(symbols))
    return transitions[:, kinds]


def text_table(strings: Sequence[str], token_bytes: Sequence[bytes], vocab_size: int) -> np.ndarray:
    """The automaton of strings, lifted to tokens: a string is found wherever it begins and ends within
    tokens.

    Args:
      strings: non-empty.
      token_bytes: the UTF-8 bytes that each token adds to the text; empty for tokens that add none.
      vocab_size: V >= len(token_bytes); further tokens add no text.

    Returns:
      [states, V] i32, as `token_table`.
    """
    transitions, symbols = _automaton([tuple(string.encode()) for string in strings])
    kind_of_byte = np.full(256, len(symbols), np.int32)
    kind_of_byte[symbols] = np.arange(len(symbols))
    order = sorted(range(len(token_bytes)), key=lambda i: -len(token_bytes[i]))
    lengths = np.array([len(token_bytes[i]) for i in order])
    flat = np.frombuffer(b"".join(token_bytes[i] for i in order), np.uint8)
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    state = np.repeat(np.arange(len(transitions), dtype=np.int32)[:, None], len(order), axis=1)
    for position in range(lengths.max(initial=0)):
        active = int(np.searchsorted(-lengths, -position))  # tokens longer than this position come first
        kinds = kind_of_byte[flat[begins[:active] + position]]
        state[:, :active] = transitions[state[:, :active], kinds]
    table = np.repeat(np.arange(len(transitions), dtype=np.int32)[:, None], vocab_size, axis=1)
    table[:, order] = state
    return table


def text_bytes(token: int, strings: Sequence[str], tokenizer: Tokenizer) -> bytes:
    """What a token adds to the text: a special token nothing, unless one of the strings spells it out."""
    piece = tokenizer.token_bytes(token)
    spelled = token not in tokenizer.special_ids or any(piece in string.encode() for string in strings)
    return piece if spelled else b""


def cut_text(text: str, stop: Sequence[str], *, keep_stop: bool) -> str:
    """The text up to the first stop string to be completed, with or without that string; all of it if there
    is none.
    """
    found = [(text.find(string) + len(string), -len(string)) for string in stop if string in text]
    if not found:
        return text
    end, length = min(found)  # among strings that end together the longest, so that all of them go
    return text[:end] if keep_stop else text[: end + length]


def check_stop(
    stop: str | Sequence[str | Sequence[int]], eos_ids: Sequence[int], vocab_size: int
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Sorts what ends a response into strings and token sequences.

    Args:
      stop: strings, token-id sequences, or one string.
      eos_ids: end-of-text tokens.
      vocab_size: V.

    Returns:
      (strings, sequences): the end-of-text tokens are sequences of one.

    Raises:
      UserError: an empty string or sequence, or a token outside the vocabulary.
    """
    given = [stop] if isinstance(stop, str) else list(stop)
    strings = tuple(entry for entry in given if isinstance(entry, str))
    sequences = [tuple(int(token) for token in entry) for entry in given if not isinstance(entry, str)]
    sequences += [(int(token),) for token in eos_ids]
    if "" in strings or () in sequences:
        raise UserError("stop contains an empty entry, which would end every response immediately; remove it")
    outside = [token for sequence in sequences for token in sequence if not 0 <= token < vocab_size]
    if outside:
        raise UserError(f"stop or eos_ids contains token {outside[0]}, but the vocabulary has {vocab_size} tokens")
    return strings, tuple(sequences)


@functools.lru_cache(maxsize=8)
def _text_table(strings: tuple[str, ...], tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    return text_table(strings, [text_bytes(i, strings, tokenizer) for i in range(vocab_size)], vocab_size)


def _fill_up(table: np.ndarray) -> np.ndarray:
    """Adds states that are never reached before the last one."""
    last = len(table) - 1
    size = max(2, 1 << last.bit_length())
    filled = np.full((size, table.shape[1]), size - 1, np.int32)
    filled[:last] = np.where(table[:last] == last, size - 1, table[:last])
    return filled


def _automaton(patterns: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Transitions [states, symbols + 1] (the last column: any other symbol) and the symbols that patterns
    use.
    """
    symbols = sorted({symbol for pattern in patterns for symbol in pattern})
    prefixes = sorted({(), *(p[:n] for p in patterns for n in range(len(p)))}, key=len)
    complete = set(patterns)
    states = {p: i for i, p in enumerate(p for p in prefixes if not _ends_in(p, complete))}
    accept = len(states)
    transitions = np.zeros((accept + 1, len(symbols) + 1), np.int32)
    transitions[accept] = accept
    for prefix, state in states.items():
        for column, symbol in enumerate(symbols):
            grown = (*prefix, symbol)
            if _ends_in(grown, complete):
                transitions[state, column] = accept
            else:
                transitions[state, column] = next(
                    states[grown[i:]] for i in range(len(grown) + 1) if grown[i:] in states
                )
    return transitions, np.array(symbols, np.int64)


def _ends_in(sequence: tuple[int, ...], patterns: set[tuple[int, ...]]) -> bool:
    return any(sequence[i:] in patterns for i in range(len(sequence)))
