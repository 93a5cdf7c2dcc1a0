"""Requests to a completions API and its answers, checked against what was asked for."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prm_jax.errors import UserError
from prm_jax.rollouts.http_client import escape

Ended = Literal["text", "stop", "either", "length"]


class CompletionRequest(NamedTuple):
    """What is asked for.

    Attributes:
      prompt: a text, or token ids.
      n: number of completions.
      max_tokens: of each.
      stop: strings that end a completion.
      temperature: of the sampling.
      top_p: share of the probability mass to sample from.
      seed: of the sampling, for servers that accept one.
    """

    prompt: str | Sequence[int]
    n: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


class Completion(NamedTuple):
    """One completion.

    Attributes:
      text: without the stop string.
      end: why it ended. "text": the model ended it; "stop": at the stop string `matched`; "either": one of these, the
        server does not say which; "length": at `max_tokens`.
      matched: None unless `end` is "stop".
      logps: (text of a token, its log-probability) in order, None where none were requested.
    """

    text: str
    end: Ended
    matched: str | None
    logps: tuple[tuple[str, float], ...] | None


def read_answer(
    answer: bytes, request: CompletionRequest, *, model: str, logprobs: bool, where: str
) -> list[Completion]:
    """The completions in an answer.

    Args:
      answer: JSON.
      request: what was asked for.
      model: name that the answer must give as its model's, if it gives one; empty accepts any.
      logprobs: log-probabilities were requested.
      where: the server, for messages.

    Returns:
      `request.n` completions, by their index.

    Raises:
      UserError: the answer does not match the request.
    """
    try:
        read = json.loads(answer)
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of thousands of digits
        raise UserError(f"{where} did not answer with JSON: {answer[:80]!r}") from error
    choices = read.get("choices") if isinstance(read, dict) else None
    if not isinstance(choices, list):
        raise UserError(f'{where} answered without "choices": {answer[:200]!r}')
    _check_model(read.get("model"), model, where)
    if len(choices) != request.n:
        raise UserError(
            f"{where} answered with {len(choices)} completions instead of {request.n}: a server that returns one at a "
            "time must be asked for one at a time (--connection.at-once 1)"
        )
    return [_completion(choice, request, logprobs, where) for choice in _in_order(choices, where)]


def _check_model(answered: Any, asked: str, where: str) -> None:
    """Refuses another model's answer; an added version ("name:1", "name-2024") and a path's last part are the same."""
    if not asked or not isinstance(answered, str) or not answered:
        return
    names = {asked, asked.rstrip("/").rpartition("/")[2]}
    if not any(answered.startswith(name) or answered.rstrip("/").endswith(f"/{name}") for name in names):
        raise UserError(
            f"{where} answered as the model {escape(answered, 80)!r} instead of {escape(asked, 80)!r}: give the "
            "server's name for the model (--connection.model), or accept any (--connection.any-model)"
        )


def _in_order(choices: Sequence[Any], where: str) -> Sequence[Any]:
    """By index, where they have one; all or none have."""
    indices = [choice["index"] for choice in choices if isinstance(choice, dict) and choice.get("index") is not None]
    if not indices:
        return choices
    if any(type(index) is not int for index in indices) or sorted(indices) != list(range(len(choices))):
        raise UserError(
            f"{where} numbered its completions {escape(str(indices), 80)}: expected each index from 0 to "
            f"{len(choices) - 1} once"
        )
    return sorted(choices, key=lambda choice: choice["index"])


def _completion(choice: Any, request: CompletionRequest, logprobs: bool, where: str) -> Completion:
    if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
        raise UserError(f'{where} answered with a completion without "text": {escape(str(choice), 200)}')
    end, matched = _end(choice)
    if end is None:
        reason = escape(str(choice.get("finish_reason")), 80)
        raise UserError(f"{where} ended a completion for the reason {reason!r}: expected 'stop' or 'length'")
    if matched is not None and matched not in request.stop:
        raise UserError(
            f"{where} stopped a completion at {escape(matched, 80)!r}, which is not among the stop strings that were "
            "sent"
        )
    logps = None
    if logprobs:
        logps = _logps(choice.get("logprobs"), where)
        _check_tokens(choice["text"], logps, request, where)
    return Completion(choice["text"], end, matched, logps)


def _end(choice: Mapping[str, Any]) -> tuple[Ended | None, str | None]:
    """(why a completion ended, the stop string), from the fields of the API and of several servers."""
    reason = choice.get("finish_reason")
    if reason == "length":
        return "length", None
    if reason in ("eos", "eos_token"):
        return "text", None
    if reason == "stop_sequence":
        return "either", None
    if reason != "stop":
        return None, None
    for name in ("stop_reason", "matched_stop"):  # vLLM, SGLang: the string, or else a token or null
        if name in choice:
            matched = choice[name]
            return ("stop", matched) if isinstance(matched, str) else ("text", None)
    kind, word = choice.get("stop_type"), choice.get("stopping_word")  # llama.cpp
    if kind == "word" and isinstance(word, str):
        return "stop", word
    return ("text" if kind == "eos" else "either"), None


def _logps(logprobs: Any, where: str) -> tuple[tuple[str, float], ...]:
    """Tokens and their log-probabilities, in the form of completions or of chats."""
    found = logprobs if isinstance(logprobs, dict) else {}
    if isinstance(found.get("content"), list):
        entries = [one if isinstance(one, dict) else {} for one in found["content"]]
        tokens: Any = [one.get("token") for one in entries]
        values: Any = [one.get("logprob") for one in entries]
    else:
        tokens, values = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        raise UserError(
            f"{where} sent no log-probabilities: enable them on the server, or do not request them "
            "(--connection.no-logprobs)"
        )
    if len(tokens) != len(values):
        raise UserError(f"{where} sent {len(values)} log-probabilities for {len(tokens)} tokens: expected one each")
    return tuple(_pair(token, value, where) for token, value in zip(tokens, values, strict=True))


def _pair(token: Any, value: Any, where: str) -> tuple[str, float]:
    # bool is an int, and integers beyond the range of floats raise; rounding gives values slightly above 0.
    number = float(value) if type(value) is float or (type(value) is int and abs(value) < 1 << 53) else math.nan
    if not (math.isfinite(number) and number <= 0.01) or not isinstance(token, str):
        raise UserError(
            f"{where} sent {escape(str(value)[:80], 40)} as the log-probability of the token "
            f"{escape(str(token), 40)!r}: expected a text and a number of at most 0"
        )
    return token, number


def _check_tokens(
    text: str, logps: Sequence[tuple[str, float]], request: CompletionRequest, where: str
) -> None:
    """The tokens must spell the text; those of the stop string and one end token may follow."""
    if len(logps) > request.max_tokens + 1:
        raise UserError(
            f"{where} sent {len(logps)} log-probabilities for a completion of at most {request.max_tokens} tokens"
        )
    if any("\ufffd" in token or token.startswith("bytes:") for token, _ in logps) or "\ufffd" in text:
        return  # tokens that are parts of a character do not spell it
    spelled = "".join(token for token, _ in logps).replace("\u2581", " ")
    if not spelled.lstrip().startswith(text.lstrip()):
        raise UserError(
            f"{where} sent log-probabilities of tokens that do not spell its text: {escape(spelled, 60)!r} instead "
            f"of {escape(text, 60)!r}"
        )
    begin, after = 0, 0
    end = len(spelled) - len(spelled.lstrip()) + len(text.lstrip())
    for token, _ in logps:
        after += begin >= end
        begin += len(token)
    allowed = 1 + max(map(len, request.stop), default=0)
    if after > allowed:
        raise UserError(
            f"{where} sent {after} log-probabilities for tokens after the end of its text {escape(text, 60)!r}: "
            f"expected at most {allowed}"
        )
