"""What a program may use."""

import dataclasses

from prm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one program, or of one test where a program has several.

    Programs can write no file and open no connection whatever the limits are.

    Attributes:
      cpu_seconds: processor time.
      wall_seconds: time by the clock; a busy machine needs more of it than of processor time.
      memory_bytes: address space.
      output_bytes: of standard output, of standard error, and of any one answer of a function.
      threads: processes and threads of the user that programs run as; counts only where that is not root.
      open_files: file descriptors.

    Raises:
      UserError: a limit that is not positive.
    """

    cpu_seconds: float = 4.0
    wall_seconds: float = 12.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 20
    threads: int = 16
    open_files: int = 32

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UserError(f"the sandbox limit {field.name} must be positive, found {value}")
        if self.memory_bytes < 64 << 20:
            raise UserError(
                f"the sandbox limit memory_bytes must be at least {64 << 20} (64 MiB), which the interpreter itself "
                f"needs; found {self.memory_bytes}"
            )
