"""Events at a server that is killed: what was acknowledged is there, and counts once."""

import http.client
import os
import threading
import time

import pytest

from gr4ad_jax.streams.opening import open_stream
from tests.test_serve import runs, serving, workdir  # noqa: F401  the fixtures

KILLS = int(os.environ.get("GR4AD_KILLS", "5"))
pytestmark = [pytest.mark.usefixtures("compile_cache"), pytest.mark.long]


def post_until_it_dies(server, prefix, acknowledged):
  """Posts events, each in two requests, until the connection breaks; notes those acknowledged."""
  number = 0
  while True:
    events = [
      {"event_id": f"{prefix}{n}", "user_id": f"user{n % 5}", "ad_id": f"ad{n % 20:02d}",
       "time": 1_750_000_000 + n} for n in range(number, number + 10)
    ]  # fmt: skip
    try:
      status, answer = server.ask("POST", "/v1/events", {"events": events})
    except (OSError, http.client.HTTPException):
      return
    if status == 202:
      assert not answer["set_aside"], answer
      acknowledged.update(event["event_id"] for event in events)
      number += 5  # half of them come again


def test_kill_9_loses_and_doubles_no_event(workdir):  # noqa: F811
  acknowledged = set()
  for turn in range(KILLS):
    with serving(workdir, "--snapshot_seconds=0.1") as server:
      writers = [
        threading.Thread(target=post_until_it_dies, args=(server, f"{turn}-{w}-", acknowledged))
        for w in range(2)
      ]
      for writer in writers:
        writer.start()
      enough = len(acknowledged) + 50
      until = time.monotonic() + 60
      while len(acknowledged) < enough and time.monotonic() < until:
        time.sleep(0.001)
      server.process.kill()
      for writer in writers:
        writer.join()
  assert len(acknowledged) >= 50 * KILLS
  stream = open_stream(f"sqlite:{workdir}/live/stream.sqlite")
  kept = [record.key for record in stream.read("events", 0, 10**6)]
  stream.close()
  assert len(set(kept)) == len(kept) and acknowledged <= set(kept)
  with serving(workdir) as server:
    counts = [server.ask("GET", f"/v1/users/user{n}")[1]["events"] for n in range(5)]
    assert sum(counts) == len(kept)
    assert server.recommend(user="user1", k=5)["ads"]
