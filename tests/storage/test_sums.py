"""Checksums: what was written is accepted, anything else is told."""

import subprocess

import pytest

from rdjax.errors import UserError
from rdjax.storage.sums import SUMS, check_sum, damaged_files, is_ours, write_sums


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 100)
    write_sums(tmp_path, ("a", "b"))
    return tmp_path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path):
    other = path.with_name("b")
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second), other.write_bytes(first)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "swapped": swap,
}


def test_what_was_written_is_whole(folder):
    assert damaged_files(folder) == []
    check_sum(folder / "a")


def test_the_form_is_that_of_sha256sum(folder):
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_told(folder, damage):
    damage(folder / "a")
    assert "a" in damaged_files(folder)
    with pytest.raises(UserError, match=r"/a: is damaged \(not what SHA256SUMS beside it says\)"):
        check_sum(folder / "a")


@pytest.mark.parametrize("content", [b"", b"what", b"\xff" * 80, b"0" * 64 + b" a\n"])
def test_a_damaged_record_is_told(folder, content):
    (folder / SUMS).write_bytes(content)
    with pytest.raises(UserError, match=SUMS):
        damaged_files(folder)
    assert not is_ours(folder, ("a",))


def test_a_folder_of_an_earlier_version_has_no_record(tmp_path):
    (tmp_path / "a").write_text("a")
    assert damaged_files(tmp_path) == []
    check_sum(tmp_path / "a")


def test_a_file_that_the_record_does_not_know_is_of_an_earlier_version(folder):
    (folder / "c").write_text("c")
    check_sum(folder / "c")
