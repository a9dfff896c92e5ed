"""A small server that speaks the Hub's routes, built from what huggingface_hub asks for, with faults on demand.

Plain files are answered by the Hub itself; large ones (`.safetensors`) with a redirect to another host, here another
port. Both know ETag and Range. Uploads are what create_commit sends: preupload, LFS batch, PUT, commit. Beside it is a
plain file server: the same files below `/files/`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """`files` of the one repository `org/repo`; everything else changes how it is told."""

    files: dict[str, bytes]
    repo_id: str = "org/repo"
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str | None = None
    lie: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the listing says of a path instead of the truth: size, sha256, blobId, rfilename."""
    truncate: dict[str, int] = field(default_factory=dict)
    """Close after so many bytes, once for each entry."""
    breaks: dict[str, int] = field(default_factory=dict)
    """Close after so many bytes, every time."""
    refuse: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    """Status and headers for the next requests, whatever they ask."""
    hold: dict[str, threading.Event] = field(default_factory=dict)
    """Send half of this path, then wait for the event."""
    half_sent: threading.Event = field(default_factory=threading.Event)
    drip: set[str] = field(default_factory=set)
    """Send these paths byte by byte, slowly."""
    drips: int = 0
    tls: ssl.SSLContext | None = None
    files_token: str | None = None
    """What `/files/` wants to see."""
    etags: bool = True
    """Whether `/files/` tells ETags."""
    ranges: bool = True
    wrong_part: bool = False
    """Answer a range with another one."""
    proxied: list[tuple[str, str | None]] = field(default_factory=list)
    """Address and Proxy-Authorization of requests that came as to a proxy."""
    stopped: threading.Event = field(default_factory=threading.Event)
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Large files that were put but not committed, by their sha256."""
    commits: int = 0
    redirect_loop: bool = False
    url: str = ""
    cdn_url: str = ""
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """Method, path, Range and Authorization of every request."""
    times: list[float] = field(default_factory=list)
    sent_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of bodies by path in the repository."""

    def tree(self) -> list[dict[str, Any]]:
        """The listing as the newer client asks for it."""
        return [
            {"type": "file", "path": file["rfilename"], "size": file["size"], "oid": file["blobId"]}
            | (
                {"lfs": {"oid": file["lfs"]["sha256"], "size": file["size"], "pointerSize": 134}}
                if "lfs" in file
                else {}
            )
            for file in self.listing()["siblings"]
        ]

    def listing(self) -> dict[str, Any]:
        siblings = []
        for path, content in self.files.items():
            told: dict[str, Any] = {"rfilename": path, "size": len(content)}
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            told["blobId"] = blob
            lie = dict(self.lie.get(path, {}))
            if _is_large(path):
                sha256 = lie.pop("sha256", hashlib.sha256(content).hexdigest())
                told["lfs"] = {"sha256": sha256, "size": lie.get("size", len(content)), "pointerSize": 134}
            siblings.append({**told, **lie})
        return {"_id": "1", "id": self.repo_id, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


@contextmanager
def hub(files: Mapping[str, bytes], **fields: Any) -> Iterator[FakeHub]:
    """Serves on two loopback ports until the block ends."""
    fake = FakeHub(dict(files), **fields)

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            fake.times.append(time.monotonic())
            fake.requests.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
            if self.path.startswith("http://"):
                fake.proxied.append((self.path, self.headers.get("Proxy-Authorization")))
            if fake.refuse:
                status, headers = fake.refuse.pop(0)
                return self._plain(status, b"", headers)
            if fake.redirect_loop:
                return self._plain(302, b"", {"Location": f"{fake.url}{self.path}"})
            if path.startswith("/cdn/"):
                return self._file(path.removeprefix("/cdn/"), {}, body=body)
            if path.startswith("/files/"):
                return self._plain_file(path.removeprefix("/files/"), body=body)
            if fake.token and self.headers.get("Authorization") != f"Bearer {fake.token}":
                return self._plain(401, b"", {"X-Error-Code": "RepoNotFound"})
            if path.startswith(f"/api/models/{fake.repo_id}/revision/"):
                return self._listing(path.rpartition("/revision/")[2])
            if path == f"/api/models/{fake.repo_id}/tree/{COMMIT}":
                return self._plain(200, json.dumps(fake.tree()).encode(), {"Content-Type": "application/json"})
            if path.startswith(f"/{fake.repo_id}/resolve/{COMMIT}/"):
                return self._resolve(path.split(f"/resolve/{COMMIT}/", 1)[1], body=body)
            return self._plain(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _plain_file(self, path: str, *, body: bool) -> None:
            if fake.files_token and self.headers.get("Authorization") != f"Bearer {fake.files_token}":
                return self._plain(401, b"", {})
            if path not in fake.files:
                return self._plain(404, b"", {})
            etag = f'"{hashlib.md5(fake.files[path], usedforsecurity=False).hexdigest()}"'
            return self._file(path, {"ETag": etag} if fake.etags else {}, body=body)

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            content = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            fake.requests.append(("POST", path, None, self.headers.get("Authorization")))
            if fake.token is None or self.headers.get("Authorization") != f"Bearer {fake.token}":
                return self._plain(403, b"", {})
            if fake.refuse:
                status, headers = fake.refuse.pop(0)
                return self._plain(status, b"", headers)
            if path == "/api/validate-yaml":  # The client asks whether the front matter of README.md is a card.
                return self._json({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                return self._json({"url": f"{fake.url}/{fake.repo_id}"})
            if path == f"/api/models/{fake.repo_id}/preupload/main":
                told = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(content)["files"]
                ]
                return self._json({"files": told})
            if path == f"/{fake.repo_id}.git/info/lfs/objects/batch":
                objects = [
                    {**wanted, "actions": {"upload": {"href": f"{fake.cdn_url}/put/{wanted['oid']}"}}}
                    for wanted in json.loads(content)["objects"]
                ]
                return self._json({"transfer": "basic", "objects": objects})
            if path == f"/api/models/{fake.repo_id}/commit/main":
                return self._commit([json.loads(line) for line in content.splitlines()])
            return self._plain(404, b"", {})

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            oid = self.path.rpartition("/")[2]
            if hashlib.sha256(content).hexdigest() != oid:
                return self._plain(400, b"", {})
            fake.uploads[oid] = content
            return self._plain(200, b"", {})

        def _commit(self, lines: list[dict[str, Any]]) -> None:
            parent = lines[0]["value"].get("parentCommit", COMMIT)
            if parent != fake.branches["main"]:
                return self._plain(412, b"", {})
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    fake.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    fake.files[value["path"]] = fake.uploads.pop(value["oid"])
                elif line["key"] == "deletedFile":
                    del fake.files[value["path"]]
            fake.commits += 1
            url = f"{fake.url}/{fake.repo_id}/commit/{COMMIT}"
            return self._json({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None, "success": True})

        def _json(self, content: Any) -> None:
            return self._plain(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _listing(self, revision: str) -> None:
            if revision != COMMIT and revision not in fake.branches:
                return self._plain(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return self._plain(200, json.dumps(fake.listing()).encode(), {"Content-Type": "application/json"})

        def _resolve(self, path: str, *, body: bool) -> None:
            if path not in fake.files:
                return self._plain(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = fake.files[path]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            if _is_large(path):
                headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"]}
                return self._plain(302, b"", {**headers, "Location": f"{fake.cdn_url}/cdn/{path}"})
            return self._file(path, headers, body=body)

        def _file(self, path: str, headers: Mapping[str, str], *, body: bool) -> None:
            content, status, headers = fake.files[path], 200, dict(headers)
            start = 0
            unchanged = self.headers.get("If-Range", headers.get("ETag")) == headers.get("ETag")
            wanted = self.headers.get("Range", "")
            if fake.ranges and unchanged and wanted.startswith("bytes="):
                start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
                start -= 10 if fake.wrong_part else 0
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content) - start)}.items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            rest = content[start:]
            while path in fake.drip and rest and not self.close_connection and not fake.stopped.wait(0.01):
                fake.drips += 1
                self._send(path, rest[:1])
                rest = rest[1:]
            if path in fake.hold:
                self._send(path, rest[: len(rest) // 2])
                fake.half_sent.set()
                fake.hold[path].wait(60)
                rest = rest[len(rest) // 2 :]
            if len(rest) > fake.breaks.get(path, len(rest)):
                self._send(path, rest[: fake.breaks[path]])
                self.close_connection = True
                return
            if path in fake.truncate:
                self._send(path, rest[: fake.truncate.pop(path)])
                self.close_connection = True
                return
            self._send(path, rest)

        def _send(self, path: str, content: bytes) -> None:
            try:
                self.wfile.write(content)
                self.wfile.flush()
                fake.sent_bytes[path] = fake.sent_bytes.get(path, 0) + len(content)
            except OSError:
                self.close_connection = True

        def _plain(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Answer), ThreadingHTTPServer(("localhost", 0), Answer)]
    scheme = "http"
    if fake.tls is not None:
        scheme = "https"
        servers[0].socket = fake.tls.wrap_socket(servers[0].socket, server_side=True)
    fake.url = f"{scheme}://127.0.0.1:{servers[0].server_address[1]}"
    fake.cdn_url = f"http://localhost:{servers[1].server_address[1]}"
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield fake
    finally:
        fake.stopped.set()
        for event in fake.hold.values():
            event.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
