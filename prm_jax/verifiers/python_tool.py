"""A Python interpreter that a model may call in the middle of a response, in the sandbox."""

from dataclasses import dataclass, field
from typing import Any

from prm_jax.errors import UserError
from prm_jax.rollouts.environments import Feedback
from prm_jax.verifiers.sandbox import Limits, LocalSandbox, Run, choose_level
from prm_jax.verifiers.tool_calls import Markers


@dataclass
class PythonTool:
    """Runs the last program between two markers and answers with what it printed.

    Each call is a program of its own: nothing is kept between calls.

    Attributes:
      sandbox: that runs the programs; None: one of this machine is made on first use.
      markers: of programs and outputs.
      max_characters: longer output is cut in the middle.
      limits: of one program.
    """

    sandbox: Any = None
    markers: Markers = Markers("<python>", "</python>", "<output>", "</output>")
    max_characters: int = 400
    limits: Limits = field(default_factory=lambda: Limits(cpu_seconds=2.0, wall_seconds=8.0))

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise UserError(f"max_characters of a tool must be at least 1, found {self.max_characters}")

    def check(self) -> None:
        """Checks that programs can be run, before the first one is.

        Raises:
          UserError: this machine has no sandbox; the message says what to install.
        """
        if self.sandbox is None:
            choose_level()

    def step(self, action: str) -> Feedback:
        """The tool as an environment: answers to a turn that ends with a program, and ends the episode otherwise."""
        code = self.markers.call(action)
        return Feedback(done=True) if code is None else Feedback(self.answer(code))

    def answer(self, code: str) -> str:
        """What the model is told about a program: its output, or the last line of its error.

        Raises:
          RuntimeError: the sandbox failed; nothing is known about the program.
        """
        if self.sandbox is None:
            self.sandbox = LocalSandbox()
        run: Run = self.sandbox.run(code, limits=self.limits)
        if run.state == "infra_error":
            raise RuntimeError(run.detail)
        text = run.stdout.rstrip("\n")
        if run.state != "ok":
            last = run.stderr.strip().rpartition("\n")[2] if run.state == "crash" else ""
            text = "\n".join(part for part in (text, last or run.detail) if part)
        return self.markers.answer(_cut(text, self.max_characters))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]} ... {text[len(text) - (limit - head) :]}"
