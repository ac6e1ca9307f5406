"""The socket of a run: its mode, long paths, and who may use it."""

import os
import socket
import stat
from pathlib import Path

import pytest

from pipelines.control import socket_file
from pipelines.control.socket_file import connect, is_from_own_user, listen, socket_path


def exchange(path: Path) -> bytes:
    with listen(path) as listener, connect(path, 10) as client:
        served, _ = listener.accept()
        with served:
            served.sendall(b"hello")
        return client.recv(10)


@pytest.mark.parametrize("job", ["label-tickets", "j" * 200])
@pytest.mark.parametrize("length", [0, 60, 240])
def test_paths_of_every_length_work_and_only_the_user_may_connect(tmp_path: Path, job: str, length: int) -> None:
    path = socket_path(tmp_path / ("s" * length), job)
    path.parent.parent.mkdir(exist_ok=True)
    assert exchange(path) == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_process_folders_a_long_path_goes_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_file, "_PROCESS_FOLDERS", tmp_path / "none")
    path = socket_path(tmp_path / ("s" * 200), "job")
    path.parent.parent.mkdir()
    assert exchange(path) == b"hello"


def test_a_socket_that_is_left_is_replaced(tmp_path: Path) -> None:
    path = socket_path(tmp_path, "job")
    listen(path).close()
    with pytest.raises(ConnectionRefusedError):
        connect(path, 10)
    assert exchange(path) == b"hello"


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with listen(socket_path(tmp_path, "job")):
            assert stat.S_IMODE(socket_path(tmp_path, "job").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert is_from_own_user(one)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        monkeypatch.setattr(socket_file.struct, "unpack", lambda form, data: (1, 4242, 1))
        assert not is_from_own_user(one)
