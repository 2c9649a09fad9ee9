"""A W&B server that keeps what it is sent: as much of its API as `wandb sync` needs, and an artifact that is sent and
fetched again. Or one that fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Listens on a free port of this machine.

    Args:
        behaviour: works; silent: takes every connection and never answers; dies: after the first answer no other.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, behaviour: str = "works") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour
        self.asked: list[tuple[str, dict[str, Any]]] = []  # GraphQL operations and their variables
        self.files: dict[str, bytes] = {}  # path of an upload -> what was uploaded
        self.raw: list[bytes] = []  # all that was sent, headers too
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def of(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every request of a kind."""
        return [variables for name, variables in self.asked if name == operation]

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # whoever is killed in the middle leaves a broken connection


@contextmanager
def serving(behaviour: str = "works") -> Iterator[Server]:
    server = Server(behaviour)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.raw.append(str(self.headers).encode() + body)
        if self.server.behaviour == "silent":
            self.server.stopping.wait()
        return body

    def _answer(self, content: Any) -> None:
        if self.server.behaviour == "dies" and len(self.server.asked) > 1:
            self.close_connection = True
            return
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self._body()
        # A file of an artifact: /artifactsV2/<region>/<entity>/<key>/<collection>/<artifact>/<digest>/<name>.
        parts = self.path.split("/")
        path = f"/artifacts/{parts[-3]}/{parts[-1]}" if parts[1] == "artifactsV2" else self.path
        content = self.server.files.get(path)
        if content is None:
            self._answer({})
            return
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        self.server.files[self.path] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path != "/graphql":
            if self.path.endswith("file_stream"):
                self.server.files.setdefault(self.path, b"")
                self.server.files[self.path] += body
            self._answer({})
            return
        asked = json.loads(body)
        operation = asked["query"].split("(")[0].split("{")[0].split()[-1]
        variables = asked.get("variables") or {}
        self.server.asked.append((operation, variables))
        content = _GRAPHQL.get(operation, lambda *_: None)(variables, self.server.url)
        self._answer({"data": content} if content else {"data": None, "errors": [{"message": f"no {operation}"}]})


def _bucket(given: dict[str, Any], url: str) -> Any:
    project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "someone"}}
    bucket = {"id": "b", "name": given["name"], "displayName": given["displayName"], "project": project}
    rest = {"description": None, "config": None, "sweepName": given["sweep"], "historyLineCount": 0}
    return {"upsertBucket": {"bucket": bucket | rest, "inserted": True}}


def _upload(url: str, path: str) -> dict[str, Any]:
    return {"id": path, "name": path, "displayName": path, "uploadUrl": f"{url}/{path}", "uploadHeaders": []}


def _artifact(given: dict[str, Any], url: str) -> Any:
    name = given["input"]["artifactCollectionName"]
    sequence = {"id": f"sequence-{name}", "latestArtifact": None}
    return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": sequence}}}


def _found(given: dict[str, Any], url: str) -> dict[str, Any]:
    """The only version of an artifact, by its id or name, in the fields that the client insists on."""
    name = given.get("id") or given["name"].partition(":")[0]
    project = {
        "id": "p",
        "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==",
        "name": "p",
        "entity": {"id": "e", "name": "me"},
    }
    sequence = {"__typename": "ArtifactSequence", "name": name, "project": project}
    times = {"createdAt": "2026-01-01T00:00:00", "updatedAt": None}
    plain = {
        "state": "COMMITTED",
        "size": 1,
        "fileCount": 1,
        "digest": "",
        "versionIndex": 0,
        "tags": [],
        "aliases": [],
    }
    null = dict.fromkeys(("description", "metadata", "historyStep", "commitHash"))
    more = {"ttlDurationSeconds": -1, "ttlIsInherited": True, "artifactType": {"name": "xtransplant-bundle"}}
    return {"__typename": "Artifact", "id": name, "artifactSequence": sequence} | plain | null | more | times


def _membership(given: dict[str, Any], url: str) -> Any:
    artifact = _found(given, url)
    shared = {name: artifact[name] for name in ("id", "versionIndex", "createdAt", "aliases")}
    kind = {"__typename": "ArtifactCollectionMembership", "artifactCollection": artifact["artifactSequence"]}
    return {"project": {"artifactCollectionMembership": kind | shared | {"artifact": artifact}}}


def _manifest(given: dict[str, Any], url: str) -> Any:
    name = given.get("artifactID") or given["artifactManifestID"]
    found = {"id": name, "file": _upload(url, f"manifests/{name}")}
    return {"artifactManifest": found}


def _artifact_files(given: dict[str, Any], url: str) -> Any:
    edges = []
    for each in given["input"]["artifactFiles"]:
        file = _upload(url, f"artifacts/{each['artifactID']}/{each['name']}")
        more = {"storagePath": file["name"], "uploadMultipartUrls": None, "artifact": {"id": each["artifactID"]}}
        edges.append({"node": file | more | {"name": each["name"], "displayName": each["name"]}})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


_GRAPHQL: dict[str, Any] = {
    "UpsertBucket": _bucket,
    "ServerFeaturesQuery": lambda given, url: {"serverInfo": {"features": []}},
    "CreateRunFiles": lambda given, url: {
        "createRunFiles": {
            "runID": "b",
            "uploadHeaders": [],
            "files": [{"name": name, "uploadUrl": f"{url}/run/{name}"} for name in given["files"]],
        }
    },
    "Viewer": lambda given, url: {
        "viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
    },
    "GetDefaultEntity": lambda given, url: {"viewer": {"id": "v", "entity": "me"}},
    "ArtifactByID": lambda given, url: {"artifact": _found(given, url)},
    "ArtifactMembershipByName": _membership,
    "FetchArtifactManifest": lambda given, url: {
        "artifact": {"currentManifest": {"file": {"directUrl": f"{url}/manifests/{given['id']}"}}}
    },
    "CreateArtifact": _artifact,
    "CreateArtifactManifest": lambda given, url: {"createArtifactManifest": _manifest(given, url)},
    "UpdateArtifactManifest": lambda given, url: {"updateArtifactManifest": _manifest(given, url)},
    "CreateArtifactFiles": _artifact_files,
    "CommitArtifact": lambda given, url: {
        "commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "", "state": "COMMITTED"}}
    },
}
