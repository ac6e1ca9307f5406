"""Keys of commands: when the command runs, what it may print, and what is shared."""

import asyncio
import pickle
import sys
from pathlib import Path

import pytest

from connectors.contracts import KeyUnavailable
from connectors.errors import FieldError, JobError
from pipelines.config.providers import key_command
from pipelines.config.providers.key_command import KeyCommand, split_command, ttl_seconds

WHERE = "rowmill.yaml:3: providers.a.api_key_command"


def command_of(folder: Path, code: str, ttl: float = 60, **environment: str) -> KeyCommand:
    """A command that runs Python code; `count` counts its runs in a file."""
    script = folder / "key.py"
    script.write_text(f"import os, sys, time\nwith open('runs', 'a') as runs: runs.write('x')\n{code}\n")
    return KeyCommand(f"{sys.executable} key.py", folder, ttl, WHERE, {"PATH": "/bin:/usr/bin", **environment})


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text())


COUNTED = "print('key-' + open('runs').read())"
"""key-x, key-xx, …"""


async def test_a_key_is_used_until_it_is_too_old(tmp_path: Path) -> None:
    command = command_of(tmp_path, COUNTED)
    command.prepare()
    command.prepare()
    assert [await command.current_key() for _ in range(3)] == ["key-x"] * 3
    assert (runs(tmp_path), command.known_keys) == (1, ("key-x",))
    command = command_of(tmp_path, COUNTED, ttl=0)
    assert [await command.current_key() for _ in range(2)] == ["key-xx", "key-xxx"]
    assert command.known_keys == ("key-xx", "key-xxx")


async def test_refusals_at_the_same_time_share_one_renewal(tmp_path: Path) -> None:
    command = command_of(tmp_path, COUNTED)
    command.prepare()
    keys = await asyncio.gather(*(command.renewed_key("key-x") for _ in range(20)))
    assert (set(keys), runs(tmp_path)) == ({"key-xx"}, 2)
    assert await command.renewed_key("key-x") == "key-xx"
    assert runs(tmp_path) == 2


async def test_a_cancelled_request_does_not_end_the_renewal_of_the_others(tmp_path: Path) -> None:
    command = command_of(tmp_path, COUNTED)
    first = asyncio.create_task(command.current_key())
    second = asyncio.create_task(command.current_key())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "key-x"
    assert first.cancelled()


async def test_after_a_failed_renewal_the_command_does_not_run_again(tmp_path: Path) -> None:
    command = command_of(tmp_path, "print('a') if runs.name and len(open('runs').read()) == 1 else sys.exit(3)")
    command.prepare()
    for _ in range(3):
        with pytest.raises(KeyUnavailable, match=r"failed \(exit code 3\); run it by hand in"):
            await command.renewed_key("a")
    assert runs(tmp_path) == 2


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("print('  sk-1\\n')", None),
        ("print('one', file=sys.stderr); print('token expired', file=sys.stderr); sys.exit(2)",
         "failed (exit code 2): token expired; run it by hand in {folder}"),
        ("", "printed nothing; make it print the key on stdout"),
        ("print('{\"token\": \"sk-secret\"}')", "printed JSON and not a key; make it print the bare key"),
        ("print('sk-1'); print('sk-2')", "printed 2 lines; make it print the key alone"),
        ("print('Your key: sk-secret')", "printed characters that no key has; make it print the key alone"),
        ("os.kill(os.getpid(), 9)", "failed (signal 9); run it by hand in {folder}"),
    ],
)  # fmt: skip
def test_what_a_command_prints_is_a_key_or_an_error_at_the_start(tmp_path: Path, code: str, found: str | None) -> None:
    command = command_of(tmp_path, code)
    if found is None:
        command.prepare()
        assert command.known_keys == ("sk-1",)
        return
    with pytest.raises(JobError) as caught:
        command.prepare()
    program = Path(sys.executable).name
    assert str(caught.value) == f"{WHERE}: {program} {found.format(folder=tmp_path)}"
    assert caught.value.exit_code == 2


def test_a_command_that_hangs_is_ended_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_command, "COMMAND_SECONDS", 0.5)
    # The child keeps the pipe open after its parent has printed the key.
    command = command_of(tmp_path, "import subprocess; subprocess.Popen(['sleep', '60']); print('sk-1')")
    with pytest.raises(JobError, match=r"took longer than 0\.5 s and was ended"):
        command.prepare()


def test_a_command_runs_in_the_workspace_with_its_environment_and_without_a_shell(tmp_path: Path) -> None:
    command = command_of(tmp_path, "print(os.environ['TOKEN'] + '@' + os.path.basename(os.getcwd()))", TOKEN="t")
    command.prepare()
    assert command.known_keys == (f"t@{tmp_path.name}",)
    script = tmp_path / "key.sh"
    script.write_text("#!/bin/sh\necho own-script\n")
    script.chmod(0o755)
    command = KeyCommand("key.sh", tmp_path, 60, WHERE, {})
    command.prepare()
    assert command.known_keys == ("own-script",)
    command = KeyCommand("printf %s $HOME", tmp_path, 60, WHERE, {"PATH": "/bin:/usr/bin", "HOME": "/root"})
    command.prepare()
    assert command.known_keys == ("$HOME",)


def test_a_missing_program_is_reported(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        KeyCommand("no-such-program --x", tmp_path, 60, WHERE, {"PATH": "/bin"}).prepare()
    assert str(caught.value) == (
        f"{WHERE}: no-such-program cannot be started (No such file or directory); correct its name"
    )


async def test_a_command_travels_to_another_process_with_its_key(tmp_path: Path) -> None:
    command = command_of(tmp_path, COUNTED)
    command.prepare()
    copy = pickle.loads(pickle.dumps(command))
    assert (await copy.current_key(), runs(tmp_path)) == ("key-x", 1)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("", "names no command"),
        ("gcloud 'x", "cannot be split into words (No closing quotation)"),
        ("vault read x | jq .token", "holds |, and no shell runs it"),
    ],
)
def test_a_command_that_needs_a_shell_is_refused(command: str, found: str) -> None:
    with pytest.raises(FieldError) as caught:
        split_command(command)
    assert caught.value.found == found
    assert split_command("sh -c 'a | b'") == ["sh", "-c", "a | b"]


def test_a_time_has_a_unit() -> None:
    assert [ttl_seconds(text) for text in ("30s", "45m", "1h", "2d")] == [30, 2700, 3600, 172800]
    for text in ("45", "0m", "m", "1 h", "-1m"):
        with pytest.raises(FieldError, match="not a time"):
            ttl_seconds(text)
