"""Responses of a server: their parts, and checks of the text, of groups and of versions."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.rollouts.dialects import TokenAnswer
from prm_jax.rollouts.engine import End, Request, Response, Ticket, first_stop
from prm_jax.rollouts.http_client import escape
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.server_client import Handle

_MOST_GROUPS = 4096


@dataclasses.dataclass(frozen=True)
class RemoteResponse(Response):
    """A response of `RemoteEngine`.

    Attributes:
      sampled: [n] bool, False for tokens that the caller gave to `RemoteEngine.extend`; their `logp` is 0.
      server_logp: [n] f32, log-probabilities as the server sent them; None where none were asked for. `logp` is None
        where they are those of another temperature than the sampling's.
    """

    sampled: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    server_logp: np.ndarray | None = None


@dataclasses.dataclass
class RemoteRow:
    """A request in progress and what has been written for it.

    Attributes:
      ticket, request: whose response it is.
      seed: of the sampling.
      limit: maximum length of the response.
      version: of the weights that the request is sent to.
      sampling: how its tokens are chosen.
      group: seed of the engine; samples of a prompt with the same one are a group.
      tokens, logp, sampled, versions: of the response so far, before the running request.
      handle: of the running request.
      request_id: of the running request.
      cancelled: what the server has written will do.
    """

    ticket: Ticket
    request: Request
    seed: int
    limit: int
    version: int
    sampling: SamplingOptions
    group: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] | None = dataclasses.field(default_factory=list)
    sampled: list[bool] = dataclasses.field(default_factory=list)
    versions: list[int] = dataclasses.field(default_factory=list)
    handle: Handle = dataclasses.field(default_factory=Handle)
    request_id: str = ""
    cancelled: bool = False

    @property
    def context(self) -> tuple[int, ...]:
        """Prompt and response so far."""
        return (*self.request.prompt, *self.tokens)

    def force(self, tokens: Sequence[int]) -> None:
        """Appends tokens that the caller gives."""
        self.tokens += [int(token) for token in tokens]
        self.sampled += [False] * len(tokens)
        self.versions += [self.version] * len(tokens)
        if self.logp is not None:
            self.logp += [0.0] * len(tokens)

    def write(self, answer: TokenAnswer) -> None:
        """Appends what the server wrote."""
        self.tokens += answer.tokens
        self.sampled += [True] * len(answer.tokens)
        self.versions += [self.version] * len(answer.tokens)
        known = [x for x in answer.logp or () if x is not None]
        if self.logp is not None and answer.logp is not None and len(known) == len(answer.tokens):
            self.logp += known
        else:
            self.logp = None

    def response(self, end: End, stop_index: int, *, exact: bool) -> RemoteResponse:
        """The response as arrays; `exact`: the log-probabilities are those of the sampling."""
        logp = None if self.logp is None else np.array(self.logp, np.float32)
        return RemoteResponse(
            np.array(self.tokens, np.int32), logp if exact else None, np.array(self.versions, np.int32), end,
            stop_index, np.array(self.sampled, bool), logp,
        )  # fmt: skip


def check_text(answer: TokenAnswer, tokenizer: Any, where: str) -> str:
    """The text of an answer's tokens; refuses one that the server spells differently.

    A server with another tokenizer is found here. Characters that are cut by the end of a response are not compared,
    nor are texts with special tokens inside, which servers treat differently.

    Raises:
      UserError: the server's text is not that of the tokens, or the end token is not the tokenizer's.
    """
    special = frozenset(tokenizer.special_ids)
    own = tokenizer.decode(list(answer.tokens), skip_special=True)
    last = answer.tokens[-1] if answer.tokens else None
    if answer.end == "eos" and last not in tokenizer.eos_ids:
        raise UserError(
            f"{where} ended a response for an end token, but its last token is {last}, which is not an end token of "
            f"the tokenizer ({list(tokenizer.eos_ids)}): the server has another tokenizer or other end tokens, or "
            "leaves the end token out"
        )
    if any(token in special for token in answer.tokens[:-1]):
        return own
    ours, theirs = (text.split("\ufffd")[0].strip() for text in (own, answer.text))
    whole = "\ufffd" not in own + answer.text and answer.end != "stop"
    if ours != theirs if whole else not (ours.startswith(theirs) or theirs.startswith(ours)):
        raise UserError(
            f"{where} wrote {escape(answer.text, 60)!r} for tokens that the tokenizer reads as {escape(own, 60)!r}: "
            "the server has another tokenizer; start it with the policy's model"
        )
    return own


def stop_position(answer: TokenAnswer, text: str, stops: Sequence[str], where: str) -> int:
    """The position in the stop set of the string that ended an answer.

    Raises:
      UserError: the server stopped at another string.
    """
    if answer.matched in stops:
        return stops.index(answer.matched)
    found = first_stop(text, stops)
    if found is None:
        raise UserError(
            f"{where} stopped a response at {escape(str(answer.matched), 60)!r}, which is not among the stop strings "
            f"that were sent: {list(stops)}"
        )
    return found[0]


@dataclasses.dataclass
class _Group:
    first: RemoteResponse
    count: int = 1
    differ: bool = False


class GroupWatch:
    """Looks at the samples of each prompt together: their versions must agree, and they should differ.

    Args:
      mixed: samples of one prompt may come from several versions.
      say: gets warnings.
    """

    def __init__(self, *, mixed: bool, say: Callable[[str], None]) -> None:
        self._mixed, self._say = mixed, say
        self._groups: dict[tuple[tuple[int, ...], int, int], _Group] = {}
        self._warned = False

    def clear(self) -> None:
        """Forgets all groups, when new weights begin new groups."""
        self._groups.clear()

    def add(self, row: RemoteRow, response: RemoteResponse) -> None:
        """Takes a completed response into account.

        Raises:
          UserError: it comes from another version than the other samples of its prompt.
        """
        request, greedy = row.request, row.sampling.temperature == 0
        key = request.prompt, request.prompt_id, row.group
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= _MOST_GROUPS:
                del self._groups[next(iter(self._groups))]
            self._groups[key] = _Group(response)
            return
        versions = {int(x) for one in (group.first, response) for x in one.version}
        if len(versions) > 1 and not self._mixed:
            raise UserError(
                f"the samples of prompt {request.prompt_id} come from the weights of versions {sorted(versions)}: poll "
                "or cancel all requests before an update, or allow mixed versions (mixed_versions=True)"
            )
        group.count += 1
        group.differ |= not np.array_equal(group.first.tokens, response.tokens)
        if not (group.differ or greedy or self._warned) and _too_alike(group):
            self._warned = True
            self._say(
                f"all {group.count} samples of prompt {request.prompt_id} are the same {len(response.tokens)} tokens: "
                "the server seems to ignore the seeds, or to answer from a cache; such groups teach nothing"
            )


def _too_alike(group: _Group) -> bool:
    """Whether so many equal responses are a coincidence of less than 1 in 1000."""
    logp = group.first.server_logp
    if logp is None:
        return group.count >= 3 and len(group.first.tokens) >= 16
    return (group.count - 1) * float(logp.sum(dtype=np.float64)) < math.log(1e-3)
