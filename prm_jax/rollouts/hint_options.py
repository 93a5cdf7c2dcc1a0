"""Options of hints. Importing this module imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from prm_jax.config_io import OptionsOf
from prm_jax.option_ranges import at_least


@dataclass(frozen=True, kw_only=True)
class HintOptions:
    """Hints inserted into responses, to find problems that a model solves with one and not without (START)."""

    text: str = ""
    """The hint, such as " Wait, maybe using Python here is a good idea. <python>". Empty: no hints."""
    at: tuple[str, ...] = ()
    """Insert the hint after the first of these strings in a response; without any, or where none occurs, at its end.
    The empty string: at its beginning."""
    rounds: Annotated[int, at_least(1)] = 1
    """Hints per problem, one after the other, while the answer is wrong."""
    tool: Literal["none", "python", "calculator"] = "none"
    """Tool that responses may use."""
    markers: tuple[str, ...] = ()
    """Strings around a call of the tool, and around its answer, instead of the tool's own: two or four."""
    keep: Literal["all", "kept"] = "all"
    """Write every problem, or only those that are solved with the hint and not without."""
    tool_calls: Annotated[int, at_least(1)] = 6
    """Maximum number of calls of the tool in a response."""
    task: str = ""
    """Task with problems and verdicts: a built-in name, a data file, or package.module:function."""
    task_options: Annotated[dict[str, str], OptionsOf("task")] = field(default_factory=dict)
    """Options of that task as name value pairs."""
    problems: Annotated[int, at_least(1)] = 64
    """Number of training problems."""
    slots: Annotated[int, at_least(1)] = 16
    """Responses that are decoded at the same time."""
