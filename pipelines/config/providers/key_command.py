"""Keys that a command prints: the command runs without a shell; its key is renewed when it is old or refused."""

import asyncio
import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connectors.contracts import KeyUnavailable
from connectors.errors import FieldError, JobError
from connectors.transport.access.secret_mask import SecretMask

COMMAND_SECONDS = 30.0
DEFAULT_TTL = "45m"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHELL_WORDS = frozenset({"|", "||", "&&", "&", ";", ">", ">>", "<", "2>"})
_MAX_KEY_CHARACTERS = 20_000


def ttl_seconds(ttl: str) -> float:
    """Return the seconds of a text such as `45m`; FieldError if it is none."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", ttl)
    if found is None or int(found[1]) == 0:
        raise FieldError(f'found "{ttl[:20]}", not a time', f"write e.g. {DEFAULT_TTL}, with s, m, h or d")
    return float(int(found[1]) * _UNITS[found[2]])


def split_command(command: str) -> Sequence[str]:
    """Return the words of a command; FieldError if it has none, or needs a shell."""
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise FieldError(f"cannot be split into words ({exc})", "fix its quotes") from exc
    if not words:
        raise FieldError("names no command", "name one")
    if shell_words := _SHELL_WORDS.intersection(words):
        raise FieldError(
            f"holds {sorted(shell_words)[0]}, and no shell runs it", "write a script and name it, or use: sh -c '...'"
        )
    return words


def workspace_program(words: Sequence[str], folder: Path) -> Sequence[str]:
    """Return the words with the path of the program: a script of the workspace may go by its bare name."""
    own = folder / words[0]
    return [str(own) if own.is_file() else words[0], *words[1:]]


class KeyCommand:
    """The keys of one command: a KeySource for the processes and event loops of one invocation."""

    def __init__(
        self, command: str, folder: Path, ttl_seconds: float, where: str, environment: Mapping[str, str]
    ) -> None:
        """`where`: begins the message of an error. `environment`: of the command."""
        self._words = workspace_program(split_command(command), folder)
        self._folder = folder
        self._ttl_seconds = ttl_seconds
        self._where = where
        self._environment = dict(environment)
        self._keys: list[str] = []
        self._obtained_at = 0.0
        self._failure: KeyUnavailable | None = None
        self._renewal: asyncio.Task[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renewal": None}

    @property
    def known_keys(self) -> Sequence[str]:
        """See KeySource, as for all public methods."""
        return tuple(self._keys)

    @property
    def seconds_left(self) -> float:
        """Seconds until the key is too old."""
        return max(0.0, self._obtained_at + self._ttl_seconds - time.monotonic())

    def prepare(self) -> None:
        if not self._keys:
            try:
                self._run()
            except KeyUnavailable as exc:
                raise JobError(self._where, str(exc)) from exc

    async def current_key(self) -> str:
        if self._keys and self.seconds_left > 0:
            return self._keys[-1]
        return await self._shared_renewal()

    async def renewed_key(self, rejected: str) -> str:
        if self._keys and self._keys[-1] != rejected:
            return self._keys[-1]
        return await self._shared_renewal()

    async def _shared_renewal(self) -> str:
        if self._failure is not None:
            # The run stops; requests in flight must not start the command again, one after the other.
            raise self._failure
        if self._renewal is None:
            self._renewal = asyncio.create_task(asyncio.to_thread(self._run))
            self._renewal.add_done_callback(self._end_renewal)
        # A request that is cancelled must not end the renewal of the others.
        return await asyncio.shield(self._renewal)

    def _end_renewal(self, renewal: "asyncio.Task[str]") -> None:
        self._renewal = None
        if not renewal.cancelled() and isinstance(failure := renewal.exception(), KeyUnavailable):
            self._failure = failure

    def _run(self) -> str:
        """Run the command, and return and store its key; KeyUnavailable if it prints none."""
        key = self._checked_key(self._output())
        if key not in self._keys:
            self._keys.append(key)
        else:
            self._keys.append(self._keys.pop(self._keys.index(key)))
        self._obtained_at = time.monotonic()
        return key

    def _output(self) -> str:
        name = Path(self._words[0]).name
        try:
            process = subprocess.Popen(
                self._words,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as exc:
            remedy = "make it executable: chmod +x" if isinstance(exc, PermissionError) else "correct its name"
            raise KeyUnavailable(f"{name} cannot be started ({exc.strerror}); {remedy}") from exc
        try:
            output, errors = process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired as exc:
            found = f"{name} took longer than {COMMAND_SECONDS:g} s and was ended"
            raise KeyUnavailable(f"{found}; make it print the key without a question") from exc
        finally:
            if process.returncode is None:
                _kill_group(process)
        if process.returncode:
            lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
            last = f": {self._masked(lines[-1])[:500]}" if lines else ""
            how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
            raise KeyUnavailable(f"{name} failed ({how}){last}; run it by hand in {self._folder}")
        return output.decode(errors="replace").strip()

    def _checked_key(self, output: str) -> str:
        """Return the output if it can be a key; messages never quote it."""
        name = Path(self._words[0]).name
        if not output:
            raise KeyUnavailable(f"{name} printed nothing; make it print the key on stdout")
        if output[0] in '{["':
            raise KeyUnavailable(f"{name} printed JSON and not a key; make it print the bare key")
        if len(output.splitlines()) > 1:
            lines = len(output.splitlines())
            raise KeyUnavailable(f"{name} printed {lines} lines; make it print the key alone")
        if not output.isascii() or not output.isprintable() or " " in output or len(output) > _MAX_KEY_CHARACTERS:
            raise KeyUnavailable(f"{name} printed characters that no key has; make it print the key alone")
        return output

    def _masked(self, line: str) -> str:
        text = "".join(char if char.isprintable() else " " for char in line)
        return SecretMask((), self._keys).text(text)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End a command with everything that it has started and that keeps its pipes open."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
