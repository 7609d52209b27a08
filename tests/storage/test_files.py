import os
import pathlib

import pytest

from rdjax.errors import UserError
from rdjax.storage.files import allocate, copy_folder, making_folder, read_json_object, write_json
from rdjax.storage.records import read_records, write_records


def read_json(path: pathlib.Path) -> dict:
    return read_json_object(path, "not found")


def read_dicts(path: pathlib.Path) -> list[dict]:
    return read_records(path, dict)


WRITERS = {"json": (write_json, read_json, {"a": 1}), "records": (write_records, read_dicts, [{"a": 1}])}
each = pytest.mark.parametrize(("write", "read", "content"), WRITERS.values(), ids=WRITERS)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the platform cannot")
def test_a_file_that_is_to_be_mapped_takes_its_room_at_once(tmp_path):
    allocate(tmp_path / "file", 2**20)
    found = (tmp_path / "file").stat()
    assert found.st_size == 2**20 and found.st_blocks * 512 >= 2**20


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path):
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    for name in ("a.json", "inner/b.json", "weights.bin"):
        (source / name).write_text(name)
    (source / "a.json").chmod(0o444)
    source.chmod(0o555)
    with making_folder(tmp_path / "made") as part:
        copy_folder(source, part, ("*.bin",))
        (part / "a.json").write_text("a new text")  # the copy can be written to
    source.chmod(0o755)
    assert {str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*.*")} == {
        *("a.json", "inner/b.json")
    }
    with pytest.raises(ValueError), making_folder(tmp_path / "other") as part:
        part.mkdir()
        raise ValueError
    assert not list(tmp_path.glob("other*"))


@each
def test_what_is_written_is_read(tmp_path, write, read, content):
    write(tmp_path / "file", content)
    assert read(tmp_path / "file") == content


@each
def test_a_failing_write_leaves_the_old_file(tmp_path, write, read, content):
    write(tmp_path / "file", content)
    with pytest.raises(TypeError):
        write(tmp_path / "file", [object()])
    assert read(tmp_path / "file") == content
    assert {entry.name for entry in tmp_path.iterdir()} <= {"file", "SHA256SUMS"}


@each
def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch, write, read, content):
    write(tmp_path / "file", content)

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", [{"a": 2}])
    assert read(tmp_path / "file") == content


def test_lines_keep_every_character(tmp_path):
    records = [{"text": text} for text in ("a\u2028b\x85c", "d\r\ne\rf", "Grüße 🎉")]
    write_records(tmp_path / "file", records)
    assert read_dicts(tmp_path / "file") == records


def test_lines_of_no_file_are_none(tmp_path):
    assert read_dicts(tmp_path / "absent") == []


def test_invalid_json_names_its_line(tmp_path):
    (tmp_path / "file").write_text("{\n oops")
    with pytest.raises(UserError, match="file: line 2: invalid JSON"):
        read_json(tmp_path / "file")
