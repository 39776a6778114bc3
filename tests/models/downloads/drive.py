"""Google Drive as gdown sees it: a server on loopback, to which requests for Google's hosts are led."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import pytest

pytest.importorskip("gdown")  # of the extras `weights` and `dev`
HTTPAdapter = pytest.importorskip("requests.adapters").HTTPAdapter

CONFIRM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">\
<input type="submit" value="Download anyway"/><input type="hidden" name="id" value="{id}">\
<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">\
<input type="hidden" name="uuid" value="0a1b"></form></body></html>"""
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""
MISSING = "<!DOCTYPE html><html><head><title>Error 404 (Not Found)!!1</title></head><body>404</body></html>"


class Drive(ThreadingHTTPServer):
    """Answers with the files of `content`, by their ids, in the way `behave` says; `asked` lists the paths."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, bytes] = {}
        self.behave: Callable[[_Handler, str, bytes], None] = direct
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Drive

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        file = self.query().get("id", "")
        self.server.behave(self, file, self.server.content.get(file, b""))

    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}

    def page(self, text: str, status: int = 200) -> None:
        self.send(text.encode(), {"Content-Type": "text/html; charset=utf-8"}, status)

    def file(self, data: bytes, length: int | None = None) -> None:
        headers = {"Content-Type": "application/octet-stream", "Content-Disposition": 'attachment; filename="a.pth"'}
        self.send(data, headers, length=length)

    def send(self, data: bytes, headers: dict[str, str], status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if length != -1:
            self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked may have gone
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


def direct(handler: _Handler, file: str, data: bytes) -> None:
    """A small file: the data at once."""
    handler.file(data) if data else handler.page(MISSING, 404)


def confirmed(handler: _Handler, file: str, data: bytes) -> None:
    """A big file: a page that asks whether to go on without a scan for viruses."""
    query = handler.query()
    if urlsplit(handler.path).path == "/download" and (query.get("confirm"), query.get("uuid")) == ("t", "0a1b"):
        handler.file(data)
    else:
        handler.page(CONFIRM.format(id=file))


def quota(handler: _Handler, file: str, data: bytes) -> None:
    """Too many downloads of late."""
    handler.page(QUOTA)


def missing(handler: _Handler, file: str, data: bytes) -> None:
    """No such file, or not for everybody."""
    handler.page(MISSING, 404)


def cut(handler: _Handler, file: str, data: bytes) -> None:
    """The connection ends in the middle of the file."""
    handler.file(data[: len(data) // 2], length=len(data))


def cut_unnoticed(handler: _Handler, file: str, data: bytes) -> None:
    """The same, of a file whose length was not announced."""
    handler.file(data[: len(data) // 2], length=-1)


def page_as_file(handler: _Handler, file: str, data: bytes) -> None:
    """A page under the headers of a file."""
    handler.file(b"\n" + QUOTA.encode())


def endless(handler: _Handler, file: str, data: bytes) -> None:
    """The page for big files, again and again."""
    handler.page(CONFIRM.format(id=file))


def silent(handler: _Handler, file: str, data: bytes) -> None:
    """No answer."""
    time.sleep(5)


def stalled(handler: _Handler, file: str, data: bytes) -> None:
    """Half of the file, and then nothing."""
    handler.file(data[: len(data) // 2], length=len(data))
    time.sleep(5)


def slow(handler: _Handler, file: str, data: bytes) -> None:
    """The file after a second."""
    time.sleep(1)
    handler.file(data)


@contextlib.contextmanager
def serve() -> Iterator[Drive]:
    """Yields a server that runs."""
    with Drive() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def led_to(port: int) -> Callable[..., Any]:
    """Returns `HTTPAdapter.send` that asks a port on loopback for what is Google's, and nobody for anything else."""
    send = HTTPAdapter.send

    def led(self, request, *args, **kwargs):
        url = urlsplit(request.url)
        assert url.hostname in ("drive.google.com", "drive.usercontent.google.com"), f"asked for {request.url}"
        request.url = urlunsplit(("http", f"127.0.0.1:{port}", url.path, url.query, ""))
        return send(self, request, *args, **kwargs)

    return led
