"""A local HTTP server for tests that serves files by the byte range and misbehaves on request."""

import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Served:
    """One file and how it is served.

    `statuses` are answered one a request before anything else; `cuts` are the bytes of body after which each request's
    connection is closed, the last one for all that follow (None: never); `rate` is in bytes a second.
    """

    content: bytes
    statuses: list[int] = field(default_factory=list)
    cuts: list[int | None] = field(default_factory=lambda: [None])
    ranges: bool = True
    content_type: str = "application/octet-stream"
    content_length: bool = True
    silent: float = 0
    rate: float | None = None
    etag: str = ""
    requests: list[str] = field(default_factory=list)
    script: Callable[[BaseHTTPRequestHandler], None] | None = None
    """Answers in place of all that; it may write whatever it likes."""


@contextmanager
def serve(files: dict[str, Served], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve `files` by path and yield the base address; other paths are answered with 404."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """Answer one request as the file's `Served` says."""
            self.close_connection = True
            served = files.get(self.path)
            if served is None:
                self.send_error(404)
                return
            asked = self.headers.get("Range", "")
            served.requests.append(asked)
            if served.script:
                with suppress(OSError):  # the client has gone
                    served.script(self)
                return
            if served.statuses:
                self.send_error(served.statuses.pop(0))
                return
            match = re.fullmatch(r"bytes=(\d+)-", asked) if served.ranges else None
            if match and served.etag and self.headers.get("If-Range", served.etag) != served.etag:
                match = None
            start, total = int(match[1]) if match else 0, len(served.content)
            if match and start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if served.etag:
                self.send_header("ETag", served.etag)
            self.send_header("Content-Type", served.content_type)
            if served.content_length:
                self.send_header("Content-Length", str(total - start))
            self.end_headers()
            cut = served.cuts.pop(0) if len(served.cuts) > 1 else served.cuts[0]
            body = served.content[start:] if cut is None else served.content[start : start + cut]
            piece = 16384
            try:
                for place in range(0, len(body), piece):
                    self.wfile.write(body[place : place + piece])
                    if served.rate:
                        time.sleep(piece / served.rate)
                if served.silent:
                    time.sleep(served.silent)
            except OSError:
                pass  # the client has gone

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        # Not server_close: it would wait for the handlers that are silent on purpose.
        server.socket.close()
        thread.join()
