"""A stand-in for the server, of standard parts: it notes what it is asked."""

import http.server
import json
import threading


class Shop:
  """A server that notes what it is asked, knows anna alone, and answers as it is told to."""

  def __init__(self):
    self.heard = []
    self.statuses = []  # of the next answers, before the usual ones
    shop = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def log_message(self, *_):
        pass

      def _answer(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status = shop.statuses.pop(0) if shop.statuses else 200
        if status == 200 and body.get("user") == "bert":
          status = 404
        shop.heard.append((self.command, self.path, body, status))
        text = json.dumps({} if status == 200 else {"error": "so it is"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

      do_POST = do_PUT = _answer

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.address = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()
