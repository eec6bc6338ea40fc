"""A real HTTP server that answers from a script, to put a client through rare situations."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """Status, headers and body; `cut` breaks the connection in the middle of the response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass
class ScriptedServer:
    """Where it listens and which requests it has seen, as (method, path, headers), with bodies."""

    url: str
    requests: list[tuple[str, str, dict[str, str]]]
    bodies: list[bytes]


@contextlib.contextmanager
def scripted_server(
    answer: Callable[[str, str, dict[str, str]], Reply],
) -> Iterator[ScriptedServer]:
    requests: list[tuple[str, str, dict[str, str]]] = []
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            headers = {name.lower(): value for name, value in self.headers.items()}
            requests.append((self.command, self.path, headers))
            reply = answer(self.command, self.path, headers)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            # A promise of more than is sent turns the closed connection into a broken one.
            self.send_header("Content-Length", str(len(reply.body) + (1 if reply.cut else 0)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = do_DELETE = _respond

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield ScriptedServer(f"http://127.0.0.1:{server.server_address[1]}", requests, bodies)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
