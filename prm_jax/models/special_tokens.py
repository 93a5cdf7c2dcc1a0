"""Token ids with a meaning of their own, and how a checkpoint's files name them."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids with a meaning of their own.

    Attributes:
      bos_id: prepended to a text under ``add_special``; None if there is no such token.
      eos_id: ends a text; None if the checkpoint names none.
      pad_id: fills rows; if the checkpoint names none, ``eos_id`` or else 0 (masks identify padding).
      eos_ids: every id that ends a generation, ``eos_id`` first; chat models often have a second one that ends
        the turn.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int = 0
    eos_ids: tuple[int, ...] = ()


def make_special_tokens(
    bos_id: int | None, eos_id: int | None, pad_id: int | None, eos_ids: tuple[int, ...]
) -> SpecialTokens:
    """Applies the defaults described in ``SpecialTokens`` to what a checkpoint names."""
    ends = tuple(dict.fromkeys(i for i in (eos_id, *eos_ids) if i is not None))
    eos_id = ends[0] if ends else None
    if pad_id is None:
        pad_id = eos_id if eos_id is not None else 0
    return SpecialTokens(bos_id=bos_id, eos_id=eos_id, pad_id=pad_id, eos_ids=ends)
