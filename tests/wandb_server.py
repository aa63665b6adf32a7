"""A stand-in for W&B's server on this machine: takes what its clients send, and keeps it.

It answers just what the client needs to hear in order to go on, so it proves what was sent and
nothing about what the real server makes of it.
"""

import gzip
import http.server
import json
import threading
from typing import Any


class Server(http.server.ThreadingHTTPServer):
    """`operations`: (name, variables) of every GraphQL request; `uploads`: bytes by file name;
    `streamed`: lines by file name."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.uploads: dict[str, bytes] = {}
        self.streamed: dict[str, list[str]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that hangs up is no error of this side."""

    def inputs(self, operation: str) -> list[dict[str, Any]]:
        return [
            variables.get("input", variables) for n, variables in self.operations if n == operation
        ]

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        if operation == "Viewer":
            return {"viewer": {"id": "U", "entity": "me", "username": "me", "flags": "{}"}}
        if operation == "UpsertBucket":
            project = {"name": given.get("project"), "entity": {"name": "me"}}
            bucket = {"id": "B", "name": given.get("name"), "displayName": given.get("displayName")}
            bucket |= {"sweepName": None, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateArtifact":
            own = {"id": f"id of {given['input']['artifactCollectionName']}"}
            own |= {"state": "COMMITTED", "artifactSequence": {"latestArtifact": dict(own)}}
            return {"createArtifact": {"artifact": own}}
        if operation == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": given["input"]["artifactID"]}}}
        if operation == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{self.url}/put/{n}"} for n in given["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        return {"project": None}  # no artifact of that name yet


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, document: dict[str, Any]) -> None:
        text = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self._reply({})

    def do_PUT(self):
        self.server.uploads[self.path.removeprefix("/put/")] = self._body()
        self._reply({})

    def do_POST(self):
        sent = json.loads(self._body())
        if "graphql" not in self.path:
            for name, part in sent.get("files", {}).items():
                self.server.streamed.setdefault(name, []).extend(part["content"])
            self._reply({})
            return
        name, given = sent.get("operationName") or "", sent.get("variables") or {}
        self.server.operations.append((name, given))
        self._reply({"data": self.server.answer(name, given)})
