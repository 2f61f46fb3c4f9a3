"""A Hugging Face hub with one model in it, on this machine: what huggingface_hub asks of one."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REVISION = "a" * 40


@dataclass
class Hub:
    """What is served as ``owner/model``, and what was asked for.

    The connection breaks ``num_breaks`` times after half of ``broken``, a file's name.
    """

    folder: Path
    broken: str = ""
    num_breaks: int = 0
    url: str = ""
    fetched: list[str] = field(default_factory=list)

    def describe(self) -> list[dict[str, object]]:
        return [
            {
                "rfilename": path.name,
                "path": path.name,
                "type": "file",
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in sorted(self.folder.iterdir())
        ]


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve ``hub`` at ``hub.url`` until the block ends."""

    class Handler(_Handler):
        served = hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    served: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if not path.startswith(("/api/models/owner/model", "/owner/model/resolve/")):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            files = self.served.describe()
            value = files if "/tree/" in path else {"id": "owner/model", "siblings": files}
            if isinstance(value, dict):
                value["sha"] = REVISION
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
        else:
            self._send_file(self.served.folder / path.rpartition("/")[2])

    def _send_file(self, path: Path) -> None:
        data = path.read_bytes()
        if self.command == "GET":
            self.served.fetched.append(path.name)
        etag = hashlib.sha256(data).hexdigest()
        self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}, path.name)

    def _send(self, code: int, data: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(code)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == self.served.broken and self.served.num_breaks:
            self.served.num_breaks -= 1
            self.close_connection = True
            data = data[: len(data) // 2]
        self.wfile.write(data)
