"""A server on loopback with as much of Google Cloud Storage's JSON interface as gcsfs asks for.

It keeps what its documentation promises: a write is whole or not at all, `ifGenerationMatch=0`
writes only where nothing of that name is, and whoever lists sees what was written.
"""

import http.server
import itertools
import json
import threading
import urllib.parse
from collections.abc import Iterator


class _Handler(http.server.BaseHTTPRequestHandler):
  """One request. Objects: (bucket, name) -> (content, generation)."""

  objects: dict
  lock: threading.Lock
  generations: Iterator[int]
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _answer(self, status, content=b"", kind="application/json"):
    self.send_response(status)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _json(self, about):
    self._answer(200, json.dumps(about).encode())

  def _asked(self):
    parts = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(parts.query))
    _, _, rest = parts.path.partition("/b/")
    bucket, _, name = rest.partition("/o")
    return bucket, urllib.parse.unquote(name.lstrip("/")), query

  def _about(self, bucket, name):
    content, generation = self.objects[bucket, name]
    return {
      "bucket": bucket, "name": name, "size": str(len(content)), "generation": str(generation),
      "etag": f"e{generation}", "updated": "2026-01-01T00:00:00Z",
      "timeCreated": "2026-01-01T00:00:00Z", "contentType": "application/octet-stream",
    }  # fmt: skip

  def do_GET(self):
    bucket, name, query = self._asked()
    with self.lock:
      if not name:
        prefix = query.get("prefix", "")
        found = [key for key in sorted(self.objects) if key[0] == bucket]
        items = [self._about(*key) for key in found if key[1].startswith(prefix)]
        self._json({"items": items})
      elif (bucket, name) not in self.objects:
        self._answer(404, b"{}")
      elif query.get("alt") == "media":
        self._answer(200, self.objects[bucket, name][0], "application/octet-stream")
      else:
        self._json(self._about(bucket, name))

  def do_POST(self):
    bucket, _, query = self._asked()
    body = self.rfile.read(int(self.headers["Content-Length"]))
    _, about, content = body.split(b"\n\n", 2)
    name = json.loads(about[: about.rindex(b"--==0==")])["name"]
    with self.lock:
      if query.get("ifGenerationMatch") == "0" and (bucket, name) in self.objects:
        self._answer(412, b"{}")
        return
      self.objects[bucket, name] = content.removesuffix(b"\n--==0==--"), next(self.generations)
      self._json(self._about(bucket, name))

  def do_DELETE(self):
    bucket, name, _ = self._asked()
    with self.lock:
      gone = self.objects.pop((bucket, name), None)
    self._answer(204 if gone else 404, b"" if gone else b"{}")


class _Quiet(http.server.ThreadingHTTPServer):
  """Says nothing of clients that hang up: gcsfs asks twice at once and drops the later answer."""

  def handle_error(self, *_):
    pass


class Server:
  """The server, from its making to `close`.

  Attributes:
    url: for `STORAGE_EMULATOR_HOST`.
  """

  def __init__(self):
    own = {"objects": {}, "lock": threading.Lock(), "generations": itertools.count(1)}
    handler = type("Handler", (_Handler,), own)
    self._server = _Quiet(("127.0.0.1", 0), handler)
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()
