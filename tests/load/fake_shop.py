"""A server that knows whoever an event was posted of, at once.

python fake_shop.py --workdir=ANY --port=0
"""

import asyncio
import json

import fake_server


class Shop:
  """Answers for u0 and for users of events."""

  def __init__(self):
    self._known = {"u0"}

  async def __call__(
    self, method: str, path: str, body: bytes
  ) -> tuple[int, dict[str, str], bytes]:
    """An answer."""
    if path.startswith("/v1/users"):
      return 200, {}, json.dumps({"users": ["u0"]}).encode()
    if path == "/v1/stats":
      return 200, {}, b'{"compiling": false}'
    assert method == "POST"
    content = json.loads(body)
    if path == "/v1/events":
      self._known |= {event["user_id"] for event in content["events"]}
      return 202, {}, b"{}"
    if content["user"] not in self._known:
      return 404, {}, b"{}"
    return 200, {}, json.dumps({"source": "model", "beams": [8], "ads": []}).encode()


if __name__ == "__main__":
  asyncio.run(fake_server.until_sigterm(Shop()))
