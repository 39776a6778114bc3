"""Pages in a real browser: Debian's chromium, without a window."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from softmaxfree.report import compare

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH, which shows the pages")

LAPTOP, PHONE = (1200, 1600), (500, 1600)  # 500 is the narrowest window that chromium makes
DARK = "--blink-settings=preferredColorScheme=0"


def look(page, folder, size=LAPTOP, *flags):
    """Returns the picture of a page (height, width, 3), what its console says, and what it asks the network for."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", f"--log-net-log={folder / 'net.json'}",
        f"--screenshot={folder / 'page.png'}", f"--window-size={size[0]},{size[1]}", *flags, page.absolute().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    events = json.loads((folder / "net.json").read_text())["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    own = {request["url"] for request in asked if request["initiator"] != "not an origin"}  # that is the browser's
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    with Image.open(folder / "page.png") as picture:
        return np.asarray(picture.convert("RGB")), console, own


def test_what_a_broken_page_would_show(tmp_path):
    page = tmp_path / "broken.html"
    page.write_text('<script>nothing.there()</script><img src="http://127.0.0.1:9/a.png">')
    picture, console, asked = look(page, tmp_path)
    assert len(console) == 1
    assert asked == {"http://127.0.0.1:9/a.png"}
    assert picture.std() < 10


@pytest.mark.parametrize(("size", "flags", "dark"), [(LAPTOP, (), False), (PHONE, (), False), (LAPTOP, (DARK,), True)])
def test_the_page_of_a_run(finished, tmp_path, size, flags, dark):
    picture, console, asked = look(finished / "report.html", tmp_path, size, *flags)
    assert not console
    assert not asked
    assert picture.shape[1] == size[0]
    assert (np.median(picture) < 60) == dark
    assert picture[: size[1] // 4].std() > 10  # the head and the scores
    curve = picture[size[1] // 4 :].astype(int)
    assert ((curve[..., 2] - curve[..., 0]) > 80).sum() > 500  # blue of a curve, or of the confusion matrix


def test_names_that_are_code_do_not_run(change, tmp_path):
    code = "</td></svg><script>console.error('run')</script><img src='http://127.0.0.1:9/b.png' onerror='nothing()'>"

    def rename(summary):
        summary["data"]["class_names"] = [f"{i}{code}" for i in range(10)]
        summary["settings"] = {code: [code, code]}
        for item in summary["mistakes"]["items"]:
            item["file"] = code

    _, console, asked = look(compare([change(rename)]), tmp_path)
    assert not console
    assert not asked


def test_the_page_of_several_runs(run_dir, tmp_path):
    shutil.copytree(run_dir, run_dir.parent / "1")
    picture, console, asked = look(compare([run_dir, run_dir.parent / "1"]), tmp_path)
    assert not console
    assert not asked
    assert picture[: LAPTOP[1] // 2].std() > 10
