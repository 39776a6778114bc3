import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from softmaxfree import atomic
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


def test_a_link_stays_a_link_and_its_file_keeps_its_permissions(tmp_path):
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    with atomic_write(link) as part:
        part.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_link_to_nothing_makes_the_file_it_names(tmp_path):
    (tmp_path / "link.csv").symlink_to("folder/real.csv")
    with atomic_write(tmp_path / "link.csv") as part:
        part.write_text("new")
    assert (tmp_path / "folder" / "real.csv").read_text() == "new"
    assert (tmp_path / "link.csv").is_symlink()


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "t.csv") as part:
            part.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t.csv").stat().st_mode) == 0o640


def test_a_device_is_written_and_stays_one(tmp_path):
    with atomic_write("/dev/null") as part:
        part.write_text("gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_pipe_is_written(tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    with atomic_write(pipe) as part:
        assert part.suffix == ".csv"
        part.write_text("through")
    assert reader.communicate()[0] == "through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe.csv"]


# The function without the package, whose import takes seconds.
ATOMIC_WRITE = f"import runpy, sys; atomic_write = runpy.run_path({atomic.__file__!r})['atomic_write']\n"


@pytest.mark.parametrize("redirected", ["> {0}", "| cat > {0}", ">> {0}"])
def test_standard_output_is_written_in_its_place(tmp_path, redirected):
    out, script = tmp_path / "out.txt", tmp_path / "script.py"
    out.write_text("")
    script.write_text(
        ATOMIC_WRITE + "print('before')\n"
        "with atomic_write('/dev/stdout') as part:\n    part.write_text('table\\n')\n"
        "print('after')\n"
    )
    subprocess.run(f"{sys.executable} {script} {redirected.format(out)}", shell=True, check=True)
    assert out.read_text() == "before\ntable\nafter\n"


def test_a_process_substitution_is_written(tmp_path):
    code = ATOMIC_WRITE + "with atomic_write(sys.argv[1]) as part: part.write_text('x')"
    command = f'{sys.executable} -c "$CODE" >(cat > {tmp_path / "out"}) ; wait $!'
    subprocess.run(["bash", "-c", command], env={**os.environ, "CODE": code}, check=True)
    assert (tmp_path / "out").read_text() == "x"


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="folder"), atomic_write(tmp_path):
        pytest.fail("entered")


@pytest.mark.parametrize("name", ["ü" * 125 + ".csv", "a." + "b" * 253, "." + "c" * 254, "ä ö.csv"])
def test_any_name_that_the_file_system_takes(tmp_path, name):
    with atomic_write(tmp_path / name) as part:
        part.write_text("x")
    assert os.listdir(tmp_path) == [name]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "t.csv"):
        pass
    assert caught.value.filename == str(tmp_path / "t.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_file_or_folder_is_not_replaced(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError), atomic_write(path) as part:
        part.write_text("new")
    assert path.read_text() == "old"
    path.chmod(0o644)
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError) as caught, atomic_write(path) as part:
        part.write_text("new")
    tmp_path.chmod(0o755)
    assert caught.value.filename == str(path)


def test_writers_of_one_file_do_not_meet(tmp_path):
    """Each holds its block open until all are in it; what is left is whole, and of one of them."""
    barrier = threading.Barrier(8)

    def write(letter):
        with atomic_write(tmp_path / "t.csv") as part:
            part.write_text(letter * 10_000)
            barrier.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "abcdefgh"))
    text = (tmp_path / "t.csv").read_text()
    assert text == text[0] * 10_000
    assert os.listdir(tmp_path) == ["t.csv"]
