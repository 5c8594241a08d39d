"""A small local server with the part of the Hub's API that huggingface_hub, transformers and datasets use.

It keeps repositories in memory, with branches, commits and large files, and identifies users by their tokens. Its
responses match the Hub's where the clients depend on them: a repository that does not exist and a private one that the
token cannot read both give "RepoNotFound", unknown tokens are rejected, names without an owner are redirected, and
large files have separate addresses for download and upload, with uploads in parts if `part_size` is set.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml


LARGE_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.parquet", "*.arrow", "*tfevents*", "*.gz", "*.png")
TOKENS = {"hf_writer": ("tester", "write"), "hf_reader": ("tester", "read"), "hf_stranger": ("stranger", "write")}
REPO_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Repository:
    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit_of(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.commit_of(revision)]

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Create a commit on the branch that replaces all files."""
        content = repr((self.branches.get(branch), branch, sorted(files.items()))).encode()
        commit = hashlib.sha1(content).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit


class HubServer:
    """The server. HF_ENDPOINT must be set to `url`, which is known before `start` is called.

    Attributes:
        repositories: by (kind, name), where kind is "model" or "dataset".
        redirects: repository names without an owner, such as wikitext, to full names.
        failures: the calls of `fail`.
        requests: all requests, as "METHOD path".
        part_size: files larger than this many bytes are uploaded in parts of this size.
    """

    def __init__(self):
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.http.server_bind()
        self.http.daemon_threads = True
        self.is_started = False
        self.http.hub = self
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.cdn_url = f"http://localhost:{self.http.server_port}"  # to the clients, another host
        self.lock = threading.Lock()
        self.clear()

    def start(self) -> None:
        """Answer requests from now on, until the process ends."""
        if not self.is_started:
            self.is_started = True
            self.http.server_activate()
            threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def clear(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.redirects: dict[str, str] = {}
        self.failures: list[list] = []
        self.requests: list[str] = []
        self.large_files: dict[str, bytes] = {}  # by the SHA-256 of their content
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size: int | None = None

    def add(self, kind: str, name: str, content: Path | dict[str, bytes], branch: str = "main", **options) -> str:
        """Commit a folder, or files given as {path: content}, to the repository; returns the commit."""
        if isinstance(content, Path):
            paths = [path for path in content.rglob("*") if path.is_file()]
            content = {path.relative_to(content).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault((kind, name), Repository(name, **options))
        return repository.commit(content, branch)

    def fail(self, pattern: str, status: int, after: int = 0) -> None:
        """Respond with `status` to requests, as "METHOD path", that match the pattern, after the first `after` ones.

        A status of 0 resets the connection, like a network failure.
        """
        self.failures.append([pattern, status, after])


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in LARGE_FILES)


class _ErrorResponse(Exception):
    def __init__(self, status: int, code: str | None, message: str):
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._respond()

    do_HEAD = do_POST = do_PUT = do_GET

    def _reset_connection(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _respond(self) -> None:
        body = self._body()
        split = urlsplit(self.path)
        path = unquote(split.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            status = None
            for failure in self.hub.failures:
                if re.search(failure[0], self.hub.requests[-1]):
                    status = failure[1] if failure[2] == 0 else status
                    failure[2] = max(failure[2] - 1, 0)
            if status == 0:
                self._reset_connection()
                return
            try:
                if status is not None:
                    raise _ErrorResponse(status, None, "the server failed")
                self._handle(path, {key: values[0] for key, values in parse_qs(split.query).items()}, body)
            except _ErrorResponse as error:
                headers = {"X-Error-Message": error.message}
                headers |= {"X-Error-Code": error.code} if error.code else {}
                self._send(error.status, {"error": error.message}, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, content: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        headers = dict(headers or {})
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        length = len(content)
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if status == 200 and requested and self.command == "GET":
            start, end = int(requested[1]), min(int(requested[2] or length - 1), length - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{length}"
            status, content = 206, content[start : end + 1]
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Permissions

    def _user(self) -> tuple[str, str] | None:
        """The name and the role ("read" or "write") of the token's user; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in TOKENS:
            raise _ErrorResponse(401, None, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def _repository(self, kind: str, name: str) -> Repository:
        repository, user = self.hub.repositories.get((kind, name)), self._user()
        if repository is None or repository.private and (user is None or user[0] != name.split("/")[0]):
            if user is None:
                raise _ErrorResponse(401, "RepoNotFound", "Invalid username or password.")
            raise _ErrorResponse(404, "RepoNotFound", "Repository not found")
        return repository

    def _require_write(self, namespace: str) -> None:
        user = self._user()
        if user is None:
            raise _ErrorResponse(401, None, "Invalid username or password.")
        if user != (namespace, "write"):
            raise _ErrorResponse(403, None, f"Forbidden: this token may not write to the namespace {namespace}")

    def _files(self, repository: Repository, revision: str) -> dict[str, bytes]:
        if repository.commit_of(revision) is None:
            raise _ErrorResponse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository.files(revision)

    # Requests

    def _handle(self, path: str, query: dict[str, str], body: bytes) -> None:
        for old, new in self.hub.redirects.items():
            for prefix in ("/datasets/", "/api/datasets/", "/api/models/", "/"):
                rest = path.removeprefix(prefix + old)
                if path.startswith(prefix + old) and (not rest or rest[0] == "/"):
                    return self._send(307, b"", {"Location": quote(prefix + new + rest)})
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate_card(json.loads(body)["content"])
        if match := re.fullmatch(r"/cdn/(\w+)", path):
            return self._send(200, self.hub.large_files[match[1]])
        if match := re.fullmatch(r"/upload/(\w+)(?:/(\d+))?", path):
            return self._take_upload(match[1], match[2], body)
        if path == "/verify":
            request = json.loads(body)
            is_there = len(self.hub.large_files.get(request["oid"], b"")) == request["size"]
            return self._send(200 if is_there else 404, {})
        if match := re.fullmatch(r"/(datasets/)?(.+)\.git/info/lfs/objects/batch", path):
            return self._lfs_batch("dataset" if match[1] else "model", match[2], json.loads(body))
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+|[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve("dataset" if match[1] else "model", *match.group(2, 3, 4))
        verbs = "revision|tree|paths-info|preupload|commit|auth-check"
        if match := re.fullmatch(rf"/api/(model|dataset)s/(.+?)(?:/({verbs})(?:/([^/]+)(?:/(.*))?)?)?", path):
            kind, name, verb, revision, rest = match.groups()
            return self._api(kind, name, verb, revision or "main", rest, query, body)
        raise _ErrorResponse(404, None, f"no such address: {path}")

    def _whoami(self) -> None:
        user = self._user()
        if user is None:
            raise _ErrorResponse(401, None, "Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": user[1]}}
        self._send(200, {"type": "user", "name": user[0], "orgs": [], "auth": auth})

    def _create(self, request: dict) -> None:
        user = self._user()
        namespace = request.get("organization") or (user[0] if user else None)
        self._require_write(namespace)
        kind, name = request.get("type", "model"), f"{namespace}/{request['name']}"
        response = {"url": f"{self.hub.url}/{name}", "name": name}
        if (kind, name) in self.hub.repositories:
            return self._send(409, response | {"error": "You already created this model repo"})
        is_private = bool(request.get("private")) or request.get("visibility") == "private"  # huggingface_hub 1, and 2
        self.hub.repositories[kind, name] = Repository(name, private=is_private)
        self._send(200, response)

    def _validate_card(self, content: str) -> None:
        """Reject cards with the metadata errors that the Hub rejects."""
        metadata = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
        errors = []
        base_model = metadata.get("base_model")
        for name in base_model if isinstance(base_model, list) else [base_model]:
            if name is not None and not REPO_NAME.fullmatch(name):
                errors.append({"message": f'"base_model" with value "{name}" is not valid'})
        for model in metadata.get("model-index") or []:
            for result in model["results"]:
                if not all(isinstance(metric["value"], (int, float, str)) for metric in result["metrics"]):
                    errors.append({"message": '"model-index" has a metric without a value'})
                if not result["dataset"].get("type") or not result["task"].get("type"):
                    errors.append({"message": '"model-index" has a result without a type'})
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self._repository(kind, name)
        if repository.gated:
            user = self._user()
            raise _ErrorResponse(403 if user else 401, "GatedRepo", f"Access to {kind} {name} is restricted")
        files = self._files(repository, revision)
        headers = {"X-Repo-Commit": repository.commit_of(revision), "Accept-Ranges": "bytes"}
        if path not in files:
            return self._send(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
        content = files[path]
        if not is_large(path):
            return self._send(200, content, headers | {"ETag": f'"{git_oid(content)}"'})
        oid = hashlib.sha256(content).hexdigest()
        self.hub.large_files[oid] = content
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)), "ETag": f'"{oid}"'}
        self._send(302, b"", headers | {"Location": f"{self.hub.cdn_url}/cdn/{oid}"})

    def _api(
        self, kind: str, name: str, verb: str | None, revision: str, rest: str | None, query: dict, body: bytes
    ) -> None:
        repository = self._repository(kind, name)
        if verb == "auth-check":
            return self._send(200, {})
        if verb in ("preupload", "commit"):
            self._require_write(name.split("/")[0])
        files = self._files(repository, revision)
        commit = repository.commit_of(revision)
        if verb in (None, "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            info = {"_id": "1", "id": name, "sha": commit, "private": repository.private, "siblings": siblings}
            info |= {"modelId": name} if kind == "model" else {}
            self._send(200, info | {"tags": [], "downloads": 0, "likes": 0, "gated": repository.gated})
        elif verb == "tree":
            self._tree(files, (rest or "").rstrip("/"), query.get("recursive", "").lower() in ("true", "1"))
        elif verb == "paths-info":
            is_json = self.headers.get("Content-Type", "").startswith("application/json")
            requested = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
            entries = _entries(files)
            self._send(200, [entries[path] for path in requested if path in entries])
        elif verb == "preupload":
            self._send(200, {"files": [self._upload_mode(file, files) for file in json.loads(body)["files"]]})
        else:
            self._commit(repository, revision, files, body)

    def _tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        entries = [
            entry
            for path, entry in _entries(files).items()
            if path.startswith(prefix) and (recursive or "/" not in path.removeprefix(prefix))
        ]
        if folder and not entries:
            raise _ErrorResponse(404, "EntryNotFound", f"{folder} does not exist")
        self._send(200, entries)

    # Uploads

    def _upload_mode(self, file: dict, files: dict[str, bytes]) -> dict:
        path = file["path"]
        old = files.get(path)
        if not is_large(path):
            return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": old and git_oid(old)}
        oid = old and hashlib.sha256(old).hexdigest()
        return {"path": path, "uploadMode": "lfs", "shouldIgnore": False, "oid": oid}

    def _lfs_batch(self, kind: str, name: str, request: dict) -> None:
        self._repository(kind, name)
        self._require_write(name.split("/")[0])
        objects = []
        for requested in request["objects"]:
            oid, size = requested["oid"], requested["size"]
            response = {"oid": oid, "size": size}
            if oid not in self.hub.large_files:
                upload = {"href": f"{self.hub.url}/upload/{oid}"}
                if self.hub.part_size and size > self.hub.part_size:
                    num_parts = -(-size // self.hub.part_size)
                    upload["header"] = {"chunk_size": str(self.hub.part_size)}
                    upload["header"] |= {str(i): f"{upload['href']}/{i}" for i in range(1, num_parts + 1)}
                response["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify"}}
            objects.append(response)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _take_upload(self, oid: str, part: str | None, body: bytes) -> None:
        if self.command == "PUT" and part:
            self.hub.parts[oid, int(part)] = body
            return self._send(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        if self.command == "POST":
            parts = json.loads(body)["parts"]
            body = b"".join(self.hub.parts[oid, part["partNumber"]] for part in parts)
        if hashlib.sha256(body).hexdigest() != oid:
            raise _ErrorResponse(400, None, "the content does not have this hash")
        self.hub.large_files[oid] = body
        self._send(200, {})

    def _commit(self, repository: Repository, revision: str, files: dict[str, bytes], body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        assert lines[0]["key"] == "header"
        files = dict(files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise _ErrorResponse(400, None, f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.large_files[value["oid"]]
            else:
                raise _ErrorResponse(400, None, f"unknown operation: {line['key']}")
        commit = repository.commit(files, revision)
        url = f"{self.hub.url}/{repository.name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


def _entries(files: dict[str, bytes]) -> dict[str, dict]:
    """Files and folders as the Hub lists them."""
    entries = {}
    for path, content in sorted(files.items()):
        for parent in reversed(Path(path).parents[:-1]):
            entries[parent.as_posix()] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": parent.as_posix()}
        entries[path] = {"type": "file", "oid": git_oid(content), "size": len(content), "path": path}
        if is_large(path):
            oid = hashlib.sha256(content).hexdigest()
            entries[path]["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entries
