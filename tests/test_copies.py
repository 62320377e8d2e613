"""Copies of checkpoints at an address: what a run begins with, what is copied, and what is cleared away."""

import os

import pytest

from pipeline.base.files import BadInputError
from pipeline.runs import store
from pipeline.training import checkpoint
from pipeline.work.copies import clear, copied

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store.STORE.mkdir(parents=True)
    return f"file://{tmp_path}/copies"


def content(word: str) -> bytes:
    """The bytes of a checkpoint that holds a word."""
    path = store.STORE / "content"
    checkpoint.save(path, KEY, {"word": word})
    saved = path.read_bytes()
    path.unlink()
    return saved


def write(word: str) -> None:
    """As a run does: the new file takes the old one's place."""
    checkpoint.save(store.beside(KEY, "checkpoint"), KEY, {"word": word})


def test_each_new_checkpoint_is_copied_and_read_elsewhere(address, tmp_path):
    with copied(KEY, address):
        write("first")
    assert (tmp_path / "copies" / f"{KEY}.checkpoint").read_bytes() == content("first")
    store.beside(KEY, "checkpoint").unlink()  # another machine
    with copied(KEY, address):
        assert store.beside(KEY, "checkpoint").read_bytes() == content("first")
        write("second")
    assert [path.read_bytes() for path in tmp_path.glob("copies/*")] == [content("second")]
    assert sorted(path.name for path in store.STORE.iterdir()) == [f"{KEY}.checkpoint"]


@pytest.mark.parametrize(("age", "expected"), [(-100, "here"), (100, "there")])
def test_the_newer_one_is_gone_on_from(address, tmp_path, age, expected):
    write("there")
    with copied(KEY, address):
        write("there")
    write("here")
    copy = tmp_path / "copies" / f"{KEY}.checkpoint"
    time = store.beside(KEY, "checkpoint").stat().st_mtime + age
    os.utime(copy, (time, time))
    with copied(KEY, address):
        assert store.beside(KEY, "checkpoint").read_bytes() == content(expected)


@pytest.mark.parametrize("damage", [b"", b"<html>login</html>"])
def test_a_damaged_copy_is_not_used(address, tmp_path, capsys, damage):
    write("here")
    copy = tmp_path / "copies" / f"{KEY}.checkpoint"
    copy.parent.mkdir()
    copy.write_bytes(damage)
    time = store.beside(KEY, "checkpoint").stat().st_mtime + 100
    os.utime(copy, (time, time))
    with copied(KEY, address):
        assert store.beside(KEY, "checkpoint").read_bytes() == content("here")
    assert "is not used: it is damaged" in capsys.readouterr().err


def test_copies_of_runs_that_are_done_go_and_nothing_else(address, tmp_path):
    (tmp_path / "copies").mkdir()
    names = [f"{KEY}.checkpoint", f"{OTHER}.checkpoint", "thesis.checkpoint", ".checkpoint", KEY]
    for name in names:
        (tmp_path / "copies" / name).touch()
    store.folder(KEY).mkdir()
    clear(address)
    assert {path.name for path in tmp_path.glob("copies/*")} == {*names[1:]}


def test_a_bad_address_is_one_error_and_a_failed_copy_is_reported(address, tmp_path, capsys):
    with pytest.raises(BadInputError, match=r"machine\.checkpoints: nosuch://place: ValueError: .*nosuch"):
        copied(KEY, "nosuch://place").__enter__()
    with copied(KEY, address):
        (tmp_path / "copies").write_text("a file in the way")
        write("first")
    assert "the checkpoint is not copied: machine.checkpoints: file://" in capsys.readouterr().err
    clear("nosuch://place")
    assert "copies of checkpoints cannot be removed: " in capsys.readouterr().err
