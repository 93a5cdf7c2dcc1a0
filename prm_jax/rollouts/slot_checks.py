"""What `SlotEngine` refuses: shapes and requests that cannot work."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.models.sharding import rows_over
from prm_jax.rollouts.engine import Engine, Request, check_request

if TYPE_CHECKING:
    from jax.sharding import Mesh


def check_shape(config: ModelConfig, slots: int, columns: int | None, mesh: "Mesh | None") -> None:
    """Refuses numbers of slots and columns that cannot work.

    Raises:
      UserError: says which numbers can.
    """
    if slots < 1:
        raise UserError(f"slots is {slots}: expected at least 1")
    context = config.context
    if columns is not None and not 2 <= columns <= context:
        raise UserError(f"columns is {columns}: expected 2 to {context}, the model's context")
    ways = 1 if mesh is None else rows_over(mesh)
    if slots % ways:
        raise UserError(f"slots is {slots}: expected a multiple of {ways}, the devices that share the slots")


def check_start(
    engine: Engine, request: Request, start: Sequence[int], *, columns: int | None, vocab: int
) -> None:
    """Refuses a request that the engine cannot serve.

    Args:
      engine: which is asked.
      request: to sample.
      start: response tokens that are given.
      columns: the engine's, or None.
      vocab: size of the vocabulary.

    Raises:
      UserError: what `check_request` refuses, a request that does not fit, or a token outside the vocabulary.
    """
    check_request(request, engine)
    if columns is not None and len(request.prompt) + request.max_new_tokens > columns:
        raise UserError(
            f"a prompt of {len(request.prompt)} tokens with a response of {request.max_new_tokens} exceeds the "
            f"engine's {columns} columns: shorten the prompt or the response, or make the engine with more"
        )
    if len(start) >= request.max_new_tokens:
        raise UserError(
            f"{len(start)} response tokens are given and max_new_tokens is {request.max_new_tokens}: expected more"
        )
    for token in itertools.chain(request.prompt, start):
        if not 0 <= token < vocab:
            raise UserError(f"a request contains token {token}, but the vocabulary has tokens 0 to {vocab - 1}")
