"""A server as a child process, which is started again with every new file of weights."""

import atexit
import contextlib
import os
import pathlib
import shlex
import subprocess
import time

from prm_jax.errors import UserError
from prm_jax.rollouts.http_client import HttpClient, NoServer, Refused, TryAgain, check_url, escape

_PLACE = "{model}"


class ServerProcess:
    """Starts a command for each file, and ends the one before; the last one ends with this process.

    Args:
      command: with ``{model}`` in place of the file; no shell reads it.
      url: where the server will answer.
      log: file for what the server prints.
      seconds: until a started server must answer ``/health``.

    Raises:
      UserError: the command does not contain ``{model}``, or the address cannot be used.
    """

    def __init__(self, command: str, url: str, *, log: pathlib.Path, seconds: float = 300.0) -> None:
        if _PLACE not in command:
            raise UserError(
                f"--rollout.server.restart is {command!r}: expected a command with {{model}} where the file of the "
                "weights belongs, such as 'llama-server -m {model} --port 8080'"
            )
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"--rollout.server.restart {command!r} cannot be read: {error}") from None
        self._url = check_url(url).removesuffix("/v1")
        self._http = HttpClient(self._url, key="", timeout=5.0)
        self._log, self._seconds = log, seconds
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def __call__(self, model: str) -> str:
        """Starts the server with a file, and returns its address once it answers.

        Raises:
          UserError: it cannot be started, ends at once, or does not answer in time.
        """
        self.close()
        words = [word.replace(_PLACE, model) for word in self._words]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            try:
                self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            except OSError as error:
                raise UserError(f"--rollout.server.restart: cannot start {words[0]}: {error.strerror}") from error
        deadline = time.monotonic() + self._seconds
        while not self._healthy():
            if self._process.poll() is not None:
                status = self._process.returncode
                raise UserError(f"the server ended with status {status} instead of serving {model}: {self._tail()}")
            if time.monotonic() > deadline:
                self.close()
                raise UserError(
                    f"the server does not answer at {self._url} after {self._seconds:g} s: {self._tail()}; does the "
                    "command of --rollout.server.restart use the port of --rollout.engine?"
                )
            time.sleep(0.1)
        return self._url

    def close(self) -> None:
        """Ends the server."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _healthy(self) -> bool:
        with contextlib.suppress(NoServer, TryAgain):
            try:
                self._http.send("/health", max_bytes=1 << 20)
            except Refused as error:
                return error.status == 404  # a server without the page answers all the same
            return True
        return False

    def _tail(self) -> str:
        """The last line of the log."""
        with open(self._log, "rb") as log:
            log.seek(max(0, os.path.getsize(self._log) - 4000))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return f"{escape(lines[-1], 200)} ({self._log})" if lines else f"it printed nothing ({self._log})"
