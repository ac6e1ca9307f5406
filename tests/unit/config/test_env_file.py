"""`.env` files: what their lines mean, and what is reported."""

from pathlib import Path

import pytest

from connectors.errors import JobError
from pipelines.config.env_file import EnvFile, read_env_file

TEXT = r"""# a comment
PLAIN=abc
export EXPORTED=sk-1
 SPACED = value
QUOTED="two words"
SINGLE='a $b \n # c'
ESCAPED="line\nnext \"x\" $HOME"
HASH=abc#def
COMMENT=abc # not this
EMPTY=
NAME_ALONE
LINES="first
second"
TWICE=1
TWICE=2
"""


def test_values_are_read_as_shells_write_them_without_expansion(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("\ufeff" + TEXT, encoding="utf-8")
    assert read_env_file(file, "rowmill.yaml") == EnvFile(
        {
            "PLAIN": "abc",
            "EXPORTED": "sk-1",
            "SPACED": "value",
            "QUOTED": "two words",
            "SINGLE": r"a $b \n # c",
            "ESCAPED": 'line\nnext "x" $HOME',
            "HASH": "abc#def",
            "COMMENT": "abc",
            "EMPTY": "",
            "LINES": "first\nsecond",
            "TWICE": "2",
        },
        (),
    )


def test_a_line_that_is_no_assignment_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("A=1\nB='never closed\nC=3\n")
    assert read_env_file(file, "x") == EnvFile({"A": "1", "C": "3"}, (2,))


def test_a_file_that_cannot_be_read_is_reported_where_it_is_named(tmp_path: Path) -> None:
    where = "rowmill.yaml:3: env_file"
    with pytest.raises(JobError) as caught:
        read_env_file(tmp_path / "secrets.env", where)
    assert str(caught.value) == (
        f"{where}: secrets.env cannot be read (No such file or directory); correct the path or its rights"
    )
    (tmp_path / "latin.env").write_bytes(b"A=\xe9\n")
    with pytest.raises(JobError) as caught:
        read_env_file(tmp_path / "latin.env", where)
    assert str(caught.value) == f"{where}: latin.env is not UTF-8; save it as UTF-8"
