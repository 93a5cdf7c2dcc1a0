"""Options of responses in turns. Importing this module imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated, Literal

from prm_jax.option_ranges import above, at_least


@dataclass(frozen=True, kw_only=True)
class TurnOptions:
    """Responses in turns, of tasks with an environment or of policies with a tool; sampled in slots."""

    tool: Literal["none", "python", "calculator"] = "none"
    """python: what the policy writes between <python> and </python> is run in the sandbox, and the output is put after
    it. calculator: what it writes between <calc> and </calc> is evaluated exactly. The tokens of answers are context
    and are not learned from."""
    markers: tuple[str, ...] = ()
    """Strings around a call of the tool, and around its answer, instead of the tool's own: two or four."""
    max_turns: Annotated[int, at_least(1)] = 8
    """Actions of a response, or calls of the tool."""
    max_answer_tokens: Annotated[int, at_least(1)] = 256
    """Longer answers of environments and tools are cut."""
    seconds: Annotated[float, above(0)] = 20.0
    """Time for one answer; a response whose environment takes longer, or fails, does not count."""
