"""The process that tries a ``tokenizer.json`` before it is loaded: a script of its own, started by ``tokenizer_files``.

It finds what the tokenizers package does not: ids far beyond the number of tokens (which would allocate gigabytes),
normalizers that multiply the length of a text, and split patterns that backtrack without end.  Whatever crashes or
takes too long here takes only this process with it.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# Ids may have gaps, but not many.
_SPARE_IDS = 100_000
# Unicode's own normal forms grow a character to 18 at most; SentencePiece's maps are not larger.
_MAX_GROWTH = 64.0
_GROWTH = {
    "NFC": 3.0, "NFD": 4.0, "NFKC": 18.0, "NFKD": 18.0, "Lowercase": 3.0, "BertNormalizer": 12.0, "ByteLevel": 4.0,
    "Nmt": 1.0, "Strip": 1.0, "StripAccents": 1.0, "Precompiled": 18.0, "Prepend": 1.0,
}  # fmt: skip
_MAX_PREPENDED = 1000
_SECONDS_PER_TEXT = 2.0
_TOKENS_PER_BYTE = 4
_UNITS = (
    "a", "A", "0", " ", "\n", "\t", ".", "_", "-", "'", "é", "世", "\u0301", "🤖", "ab ", "A1", "a.", "\r\n", "x = 1; ",
)  # fmt: skip


class _Refused(Exception):
    """Why the file is not loaded."""


def make_probe() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that answers a request, the file's ``path``: {} or ``problem``."""
    import tokenizers

    def probe(request: dict[str, Any]) -> dict[str, Any]:
        try:
            text = pathlib.Path(request["path"]).read_text(encoding="utf-8")
            described = json.loads(text)
            if not isinstance(described, dict):
                raise _Refused(f"expected a JSON object, found {type(described).__name__}")
            check_ids(described)
            check_growth(described.get("normalizer"))
            _try_texts(tokenizers.Tokenizer.from_str(text))
        except _Refused as error:
            return {"problem": str(error)}
        except MemoryError:
            return {"problem": "it needs more memory than a tokenizer should"}
        except BaseException as error:  # the package raises bare Exception, and BaseException when it panics
            return {"problem": f"the tokenizers package cannot use it: {str(error)[:300]}"}
        return {}

    return probe


def check_ids(described: dict[str, Any]) -> None:
    """Checks that the ids of a parsed ``tokenizer.json`` are integers not far beyond the number of tokens."""
    model = described.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: list[Any] = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    count = len(vocabulary) if isinstance(vocabulary, dict | list) else 0
    added = described.get("added_tokens") or []
    ids += [token.get("id") for token in added if isinstance(token, dict)]
    limit = 2 * (count + len(added)) + _SPARE_IDS
    for index in ids:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise _Refused(f"the vocabulary has the id {str(index)[:40]!r}, expected integers from 0")
        if index > limit:
            raise _Refused(f"the vocabulary has the id {str(index)[:40]} but only {count + len(added)} tokens")


def check_growth(normalizer: Any) -> None:
    """Checks that a normalizer cannot make a text many times longer."""
    growth = 1.0
    for stage in _stages(normalizer):
        kind = stage.get("type")
        if kind == "Replace":
            growth *= _replaced(stage)
        elif kind == "Prepend" and len(str(stage.get("prepend"))) > _MAX_PREPENDED:
            raise _Refused(f"its normalizer prepends {len(str(stage.get('prepend')))} characters to every text")
        else:
            growth *= _GROWTH.get(str(kind), _MAX_GROWTH + 1)
        if growth > _MAX_GROWTH * _GROWTH["NFKC"]:
            raise _Refused(f"its normalizer ({kind}) may make a text {growth:.3g} times longer")


def _replaced(stage: dict[str, Any]) -> float:
    """How much longer a ``Replace`` may make a text."""
    content = len(str(stage.get("content", "")))
    pattern = stage.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    growth = max(1.0, content / max(1, len(literal))) if isinstance(literal, str) else 1.0 + content
    if growth > _MAX_GROWTH:
        raise _Refused(f"its normalizer (Replace) may make a text {growth:.3g} times longer")
    return growth


def _stages(normalizer: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(normalizer, dict):
        return
    if normalizer.get("type") == "Sequence":
        for inner in normalizer.get("normalizers") or []:
            yield from _stages(inner)
    else:
        yield normalizer


def _try_texts(tokenizer: Any) -> None:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for unit in _UNITS:
        for end in ("", "!", "\0"):
            text = unit * (2000 // len(unit)) + end
            begun = time.process_time()
            try:
                count = len(tokenizer.encode(text).ids)
            except Exception as error:
                if "UNK" in str(error) or "unk" in str(error):  # a vocabulary that does not cover it
                    continue
                raise
            seconds = time.process_time() - begun
            if seconds > _SECONDS_PER_TEXT:
                raise _Refused(f"it takes {seconds:.1f} seconds to tokenize {len(text)} characters ({unit!r} repeated)")
            if count > _TOKENS_PER_BYTE * len(text.encode()) + _MAX_PREPENDED:
                raise _Refused(f"it makes {count} tokens of {len(text)} characters ({unit!r} repeated)")


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import child_process

    sys.path.pop(0)
    child_process.serve(make_probe)
