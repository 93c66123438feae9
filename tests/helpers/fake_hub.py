"""Serve model directories on loopback, as far as huggingface_hub asks a hub for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from tests.helpers.file_server import loopback


@dataclass
class FakeHub:
    """Repositories by name; each has a directory per commit, and branches that name commits."""

    url: str
    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    """{repository: {commit: directory}}"""
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    """{repository: {branch: commit}}"""
    token: str = ""
    """If set, requests without it are answered with 401."""
    asked: list[str] = field(default_factory=list)
    """"METHOD path" of every request."""

    def publish(self, repository: str, directory: Path, commit: str, branch: str = "main") -> None:
        self.commits.setdefault(repository, {})[commit] = directory
        self.branches.setdefault(repository, {})[branch] = commit

    def directory(self, repository: str, revision: str) -> tuple[str, Path] | None:
        commit = self.branches.get(repository, {}).get(revision, revision)
        found = self.commits.get(repository, {}).get(commit)
        return (commit, found) if found else None


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None: ...

        def _answer(self, with_body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._send(401, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                return self._api("/".join(parts[2:4]), parts[4:], with_body)
            if parts[2:3] != ["resolve"]:
                return self._send(404, b"", {}, with_body)
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)

        def _api(self, repository: str, rest: list[str], with_body: bool) -> None:
            if repository not in hub.commits:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
            found = hub.directory(repository, rest[1] if len(rest) > 1 else "main")
            if found is None:
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
            commit, directory = found
            files = sorted(path for path in directory.rglob("*") if path.is_file())
            names = [str(path.relative_to(directory)) for path in files]
            if rest and rest[0] == "tree":
                body: object = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": _digest(path)}
                    for name, path in zip(names, files, strict=True)
                ]
            else:
                body = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body)

        def _file(self, repository: str, revision: str, name: str, with_body: bool) -> None:
            found = hub.directory(repository, revision)
            if found is None or not (found[1] / name).is_file():
                known = "EntryNotFound" if found else "RevisionNotFound"
                missing = known if repository in hub.commits else "RepoNotFound"
                return self._send(404, b"", {"X-Error-Code": missing}, with_body)
            commit, path = found[0], found[1] / name
            headers = {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": commit}
            return self._send(200, path.read_bytes(), headers, with_body)

        def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    with loopback(Handler) as url:
        hub = FakeHub(url)
        yield hub


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
