import errno
import os
from pathlib import Path

import pytest

from softmaxfree.atomic import atomic_write, write_csv


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_write(path) as part:
        part.write_text("whole")
        assert part.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["table.csv"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as part, part.open("w") as file:
        file.write(b"bytes")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def write_to_full_disk(path):
    with atomic_write(path) as part:
        os.symlink("/dev/full", part)
        part.write_text("new")


def test_a_full_disk_is_one_clear_error(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(OSError, match=r"no space left on the disk .* free.*last good one") as caught:
        write_to_full_disk(path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_missing_folder_is_made_and_a_forbidden_one_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError), atomic_write(Path(tmp_path, "file", "table.csv")):
        pass


def test_a_table_has_a_column_for_each_key_of_any_row(tmp_path):
    write_csv(tmp_path / "t.csv", [{"a": 1}, {"a": 2, "b": "x,y"}])
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\n1,\n2,"x,y"\n'
