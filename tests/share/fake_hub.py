"""A hub on loopback: repositories in memory, and of its interface what uploads and downloads need."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0" * 39 + "1"


class FakeHub:
    """Starts a server, which refuses what is named `refused`, and hangs up at `gone`.

    `files` are by repository and name, `seen` are the requests with their tokens.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.seen: list[tuple[str, str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.do_GET(body=False)

            def do_GET(self, body=True):
                hub.seen.append((self.command, self.path, self.headers.get("authorization", "")))
                repository, _, rest = self.path.lstrip("/").partition("/resolve/")
                name = rest.partition("/")[2].partition("?")[0]
                held = hub.files.get(repository)
                if held is None or name not in held:
                    code = "RepoNotFound" if held is None else "EntryNotFound"
                    self._send(404, b"{}", {"X-Error-Code": code}, body)
                    return
                content = held[name]
                self._send(
                    200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, body
                )

            def do_POST(self):
                hub.seen.append((self.command, self.path, self.headers.get("authorization", "")))
                given = self.rfile.read(int(self.headers["content-length"]))
                if b"refused" in given:
                    self._send(403, b'{"error": "no"}', {})
                elif b"gone" in given:
                    self.connection.close()
                elif self.path == "/api/repos/create":
                    told = json.loads(given)
                    name = f"{told['organization']}/{told['name']}" if told.get("organization") else told["name"]
                    hub.files.setdefault(name, {})
                    self._json({"url": f"{hub.url}/{name}", "id": name, "name": name})
                elif self.path.endswith("/preupload/main"):
                    paths = [each["path"] for each in json.loads(given)["files"]]
                    files = [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in paths]
                    self._json({"files": files})
                elif self.path.endswith("/commit/main"):
                    repository = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
                    for line in map(json.loads, given.splitlines()):
                        if line["key"] == "file":
                            hub.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    self._json(
                        {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{repository}/commit/{COMMIT}"}
                    )
                else:  # the check of the card's head
                    self._json({"errors": [], "warnings": []})

            def _json(self, value):
                self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

            def _send(self, code, content, headers, body=True):
                self.send_response(code)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
