"""The command ``prm-jax``: finds the subcommand, parses its options, runs it, and turns failures into exit codes.

    0 done  1 unexpected error  2 bad input  3 does not fit  69 no answer  74 storage failed  75 interrupted and saved
    76 stuck  77 diverged  78 restarts made no progress  130 interrupted

A subcommand is a module of ``prm_jax.commands`` with a dataclass ``Options`` and a function ``run(options)``, and a
line in ``COMMANDS``. Nothing but the standard library is imported before a subcommand is chosen.
"""

import contextlib
import difflib
import errno
import importlib
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from prm_jax import exit_codes
from prm_jax._version import __version__
from prm_jax.errors import UserError
from prm_jax.terminal import discard_output, prepare_streams, print_error, set_up_logging

_FULL = (errno.ENOSPC, errno.EDQUOT)

COMMANDS = {
    "train": "train a policy with process rewards learned from outcomes (PRIME)",
    "plan": "show the memory, operations and time of a training run before it starts",
    "launch": "run a command in several processes, restarted when one dies",
    "train-prm": "train a process reward model on step labels, outcomes or preferences",
    "score": "score the steps of solutions with a process reward model",
    "eval": "judge a process reward model: first wrong step, best of n, calibration",
    "search": "answer a task by search over the steps of a model",
    "label": "label steps by rollouts: OmegaPRM, or every prefix",
    "critique": "judge the steps of solutions with a language model that writes critiques",
    "plot": "draw the curves of one run, or compare runs with their seeds as bands",
    "claims": "write the page of claims from the results of experiments",
    "generate": "sample from a model",
    "convert": "turn a GGUF file or a Hugging Face directory into a Hugging Face directory",
    "doctor": "show versions, devices, memory, extras and the sandbox of this machine",
}
"""Name -> what it does; the module is ``prm_jax.commands.<name>``, with _ for -."""

_HELP = """usage: prm-jax COMMAND [OPTIONS]

Process rewards in JAX: train with them, judge them, search with them.

commands:
{commands}

options:
  -h, --help   show this, or after a command its options
  --version    show the version
  --debug      show tracebacks and log messages

examples:
  prm-jax train --preset tiny
  prm-jax train --preset tiny --prm.learning-rate 1e-3 --run-dir runs/mine
  prm-jax train --run-dir runs/mine --resume
  prm-jax launch --nproc 2 -- train --preset tiny --run-dir runs/mine
  prm-jax plot runs/mine

exit codes, for schedulers:
  final       0 done, 2 bad input, 3 does not fit, 77 diverged, 78 restarts made no progress
  continue    75 interrupted and saved: the same command with --resume
  try again   1 unexpected error, 69 no answer, 74 storage failed, 76 stuck, 128 + n killed by signal n"""


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Of several processes, one that fails ends all others with its exit code.
    """
    prepare_streams()
    words = list(sys.argv[1:] if words is None else words)
    end = words.index("--") if "--" in words else len(words)  # what follows may be another command
    debug = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    code, message = _run(words, debug)
    if message:
        print_error(message)
    if "prm_jax.runs.distributed" not in sys.modules:
        return code
    from prm_jax.runs import distributed

    if code not in (0, exit_codes.INTERRUPTED):
        distributed.publish_failure(message or f"exit code {code}; see its output", code)
    return distributed.leave(code)


def _run(words: list[str], debug: bool) -> tuple[int, str]:
    """(exit code, what failed; empty where it has been said already)."""
    try:
        code = _dispatch(words, debug)
        sys.stdout.flush()
        return code, ""
    except BrokenPipeError:  # the reader has gone, as in `prm-jax ... | head`
        discard_output()
        return exit_codes.PIPE, ""
    except SystemExit as stop:  # from help and usage errors
        return stop.code if isinstance(stop.code, int) else exit_codes.USER if stop.code else 0, ""
    except KeyboardInterrupt:
        return exit_codes.SIGINT, "interrupted"
    except UserError as error:
        _show_traceback(debug)
        return error.exit_code, str(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            discard_output()
            why = f"cannot write the output: {error.strerror}. Free some space, or write to another device"
            return exit_codes.UNEXPECTED, why
        _show_traceback(debug)
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return exit_codes.USER, f"{error.strerror}: {error.filename}"
        return exit_codes.UNEXPECTED, _unexpected(error, debug)


def _dispatch(words: list[str], debug: bool) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP.format(commands="\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())))
        return 0
    if words[0] in ("--version", "-V", "version"):
        print(f"prm-jax {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}: {hint}")
    set_up_logging(debug=debug)
    return run_command(importlib.import_module(f"prm_jax.commands.{name.replace('-', '_')}"), name, rest)


def run_command(module: ModuleType | Any, name: str, words: Sequence[str]) -> int:
    """Parses the options of a subcommand's module and runs it; returns its exit code (0 for None).

    A module may have ``options_class(words) -> type`` where the options themselves depend on the command line,
    ``defaults(words) -> Options`` where their values do, and ``COMMON_OPTIONS`` (or ``common_options(words)``) with
    the names of the options that ``--help`` shows. With ``TAKES_COMMAND``, the words after ``--`` are the second
    argument of ``run``.
    """
    from prm_jax import command_line

    words, rest = list(words), None
    if getattr(module, "TAKES_COMMAND", False):
        end = words.index("--") if "--" in words else len(words)
        words, rest = words[:end], words[end + 1 :]
    default = None
    if hasattr(module, "defaults"):
        # Help shows the defaults of a preset that was named, but does not depend on one that cannot be read.
        with contextlib.suppress(*[UserError] if command_line.help_wanted(words) else []):
            default = module.defaults(words)
    common = getattr(module, "COMMON_OPTIONS", ())
    if hasattr(module, "common_options"):
        common = module.common_options(words)
    cls = module.options_class(words) if hasattr(module, "options_class") else module.Options
    options = command_line.parse(cls, words, prog=f"prm-jax {name}", default=default, common=common)
    if hasattr(options, "distributed"):
        _join(name, options)
    return (module.run(options) if rest is None else module.run(options, rest)) or 0


def _join(name: str, options: Any) -> None:
    """Joins the processes of the run before anything uses a device; only the first one prints results."""
    from prm_jax import config_io
    from prm_jax.option_ranges import check_ranges
    from prm_jax.runs import distributed, processes

    problems = check_ranges(options.distributed, "distributed.")
    if problems:
        raise UserError("\n".join(problems))
    distributed.initialize(options.distributed)
    if processes.count() == 1:
        return
    values = config_io.flatten(options).items()
    alike = {option: value for option, value in values if not option.startswith("distributed.")}
    processes.agree("options", {"command": name, **alike})
    if not processes.is_first():
        discard_output()


def _show_traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _unexpected(error: Exception, debug: bool) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        first = text.splitlines()[0][:300]
        return (
            f"out of memory: {first}\nMake the step smaller: fewer prompts or samples, shorter responses, more "
            "microbatches, --model.remat full, or bfloat16"
        )
    if debug:
        return text
    first = text.splitlines()[0][:500]
    return f"{first}\nThis is an unexpected error. The traceback is in {_keep_traceback()}; --debug shows it here"


def _keep_traceback() -> str:
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="prm-jax-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(" ".join(sys.argv) + "\n")
            traceback.print_exc(file=file)
            return file.name
    except OSError:
        return "nowhere (no directory for temporary files can be written)"


if __name__ == "__main__":
    sys.exit(main())
