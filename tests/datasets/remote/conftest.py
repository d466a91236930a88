"""A web and S3 server on this machine that loses connections, spoils bytes, stalls and refuses, as it is told."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from fmri2img.datasets.fetch_link import Link

PART = 4000  # bytes of each part of the objects called multipart


@dataclass
class Request:
    """One request: bytes from `start` to `end` of a file, of which `sent` went out."""

    method: str
    path: str
    start: int = 0
    end: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What happens to the next `times` GET requests of a file (of those that reach byte `at`, where it matters)."""

    kind: str
    at: int = 0
    status: int = 0
    times: int = 1


@dataclass
class Server:
    """Files by path (`bucket/key`), what goes wrong with them, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    dead: bool = False
    multipart: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    address: str = ""

    def publish(self, folder: Path, bucket: str) -> None:
        """Serve the files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.files[f"{bucket}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def drop(self, path: str, at: int, times: int = 1) -> Server:
        """Cut the connection when byte `at` of the file would be sent."""
        return self._fault(path, Fault("drop", at=at, times=times))

    def corrupt(self, path: str, at: int, times: int = 1) -> Server:
        return self._fault(path, Fault("corrupt", at=at, times=times))

    def stall(self, path: str, times: int = 1) -> Server:
        """Say nothing for longer than the link waits."""
        return self._fault(path, Fault("stall", times=times))

    def refuse(self, path: str, status: int, times: int = 1) -> Server:
        return self._fault(path, Fault("refuse", status=status, times=times))

    def sent(self, path: str) -> int:
        """Bytes of a file that went out."""
        return sum(r.sent for r in self.requests if r.path == path and r.method == "GET")

    def gets(self, path: str) -> list[Request]:
        return [r for r in self.requests if r.path == path and r.method == "GET"]

    def _fault(self, path: str, fault: Fault) -> Server:
        self.faults.setdefault(path, []).append(fault)
        return self

    def fault(self, path: str, start: int, end: int) -> Fault | None:
        """The fault that a GET of these bytes meets."""
        with self.lock:
            for fault in self.faults.get(path, []):
                if fault.times and (fault.kind in ("stall", "refuse") or start <= fault.at < end):
                    fault.times -= 1
                    return fault
        return None

    def etag(self, path: str) -> str:
        data, part = self.files[path], PART if path in self.multipart else 0
        parts = [data[place : place + part] for place in range(0, len(data), part)] if part else []
        digests = b"".join(hashlib.md5(piece, usedforsecurity=False).digest() for piece in parts)
        digest = hashlib.md5(digests if part else data, usedforsecurity=False).hexdigest()
        return f'"{digest}-{len(parts)}"' if part else f'"{digest}"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server
    timeout = 10
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_POST(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        state, address = self.state, urlsplit(self.path)
        path, query = unquote(address.path).strip("/"), parse_qs(address.query)
        if state.dead:
            self._record(Request(self.command, path))
            return self._hang_up()
        if path.startswith("api/"):
            form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
            self._record(Request(self.command, path))
            answer = _hub(state, path, form, recursive=query.get("recursive") in (["True"], ["true"]))
            return self._answer(404 if answer is None else 200, json.dumps(answer or {}), "application/json")
        path = path.replace("/resolve/main/", "/")
        if "list-type" in query:
            return self._answer(200, _listing(state, path, query), "application/xml")
        if path not in state.files:
            self._record(Request(self.command, path))
            return self._answer(404, _error("NoSuchKey"), "application/xml", body=body)
        data = state.files[path]
        start, end = self._range(len(data))
        if "partNumber" in query:
            end = min(end, PART)
        request = Request(self.command, path, start, end)
        self._record(request)
        if start >= len(data) and data:
            return self._answer(416, _error("InvalidRange"), "application/xml", body=body)
        fault = state.fault(path, start, end) if body else None
        if fault is not None and fault.kind == "refuse":
            return self._answer(
                fault.status, _error("SlowDown" if fault.status == 503 else "Other"), "application/xml"
            )
        if fault is not None and fault.kind == "stall":
            threading.Event().wait(0.6)
            return self._hang_up()
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", state.etag(path))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if body:
            self._send(data, start, end, fault, request)

    def _send(self, data: bytes, start: int, end: int, fault: Fault | None, request: Request) -> None:
        piece = bytearray(data[start:end])
        if fault is not None and fault.kind == "corrupt":
            piece[fault.at - start] ^= 0xFF
        if fault is not None and fault.kind == "drop":
            del piece[fault.at - start :]
        request.sent = len(piece)  # before the client can know that it has them
        try:
            self.wfile.write(piece)
            self.wfile.flush()
        except ConnectionError:
            request.sent = 0
        if fault is not None and fault.kind == "drop":
            self._hang_up()

    def _range(self, size: int) -> tuple[int, int]:
        asked = self.headers.get("Range", "")
        if not asked:
            return 0, size
        start, _, last = asked.removeprefix("bytes=").partition("-")
        return int(start), min(int(last) + 1, size) if last else size

    def _answer(self, status: int, text: str, kind: str, *, body: bool = True) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _record(self, request: Request) -> None:
        with self.state.lock:
            self.state.requests.append(request)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()


def _error(code: str) -> str:
    return (
        f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    )


def _listing(state: Server, path: str, query: dict[str, list[str]]) -> str:
    bucket = path.split("/")[0]
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    keys, folders = [], set()
    for name in sorted(state.files):
        if not name.startswith(f"{bucket}/{prefix}"):
            continue
        key = name.removeprefix(f"{bucket}/")
        rest = key.removeprefix(prefix)
        if delimiter and delimiter in rest:
            folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            continue
        tag, size = escape(state.etag(name)), len(state.files[name])
        keys.append(
            f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>{tag}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
        )
    common = "".join(
        f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders)
    )
    return (
        "<?xml version='1.0' encoding='UTF-8'?>"
        f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys)}</KeyCount>"
        f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(keys)}{common}</ListBucketResult>"
    )


def _hub(state: Server, path: str, form: dict[str, list[str]], *, recursive: bool) -> Any:
    """What the Hugging Face hub says of the repository `datasets/OWNER/NAME`: that it is there, and its files."""
    if not path.startswith("api/datasets/"):
        return None
    _, kind, owner, name, *rest = path.split("/")
    repository = f"{kind}/{owner}/{name}/"
    keys = sorted(key.removeprefix(repository) for key in state.files if key.startswith(repository))
    if not keys:
        return None
    if not rest or rest[0] == "revision":
        return {"id": f"{owner}/{name}", "sha": "0" * 40, "siblings": []}
    if rest[0] == "paths-info":
        return [_hub_file(state, repository, key) for key in keys if key in form.get("paths", [])]
    folder = "/".join(rest[2:])  # after tree and the revision
    inside = [key for key in keys if key.startswith(f"{folder}/" if folder else "")]
    files = [key for key in inside if recursive or "/" not in key.removeprefix(folder).strip("/")]
    entries = [_hub_file(state, repository, key) for key in files]
    for key in inside:
        step = key.removeprefix(folder).strip("/").partition("/")
        if step[1] and not recursive:
            entry = {
                "type": "directory",
                "path": f"{folder}/{step[0]}".strip("/"),
                "oid": "1" * 40,
                "size": 0,
            }
            entries += [entry] if entry not in entries else []
    return entries or None


def _hub_file(state: Server, repository: str, key: str) -> dict[str, Any]:
    data = state.files[repository + key]
    entry: dict[str, Any] = {"type": "file", "path": key, "size": len(data), "oid": "2" * 40}
    if len(data) > 2000:  # large files alone have a sha256
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@pytest.fixture(scope="session")
def web() -> Iterator[type[Handler]]:
    """One port for all tests, so that connections and clients are not made anew for each."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.daemon_threads = True
        web.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are what we test
        Handler.state = Server(address=f"http://127.0.0.1:{web.server_address[1]}")
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Handler
        web.shutdown()
        thread.join()


@pytest.fixture
def server(web: type[Handler]) -> Server:
    web.state = Server(address=web.state.address)
    return web.state


@pytest.fixture
def link() -> Link:
    """Small blocks, and little patience."""
    return Link(block=1000, attempts=4, wait=0.01, longest=0.02, timeout=5)


@pytest.fixture
def s3_link(server: Server) -> Link:
    options = {"anon": True, "endpoint_url": server.address, "client_kwargs": {"region_name": "us-east-1"}}
    return Link(options={"s3": options}, block=1000, attempts=4, wait=0.01, longest=0.02, timeout=5)
