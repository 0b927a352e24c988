"""The load generator, against servers of this process."""

import asyncio
import collections
import itertools
import json

import numpy as np
import pytest

from gr4ad_jax.load import http_load
from gr4ad_jax.load.http_load import Client, Phase
from tests.load import fake_server
from tests.timing import undisturbed

ANSWER = json.dumps({"source": "model", "beams": [4, 9], "ads": []}).encode()
BODIES = itertools.repeat(b'{"user": "u1"}')


def _with_server(handler, use, keep=True, **settings):
  """What `use(client)` returns, with a client of a server that answers by `handler(method, path,
  body)`.
  """

  async def run():
    async with await fake_server.start(handler, keep) as server:
      client = Client(fake_server.address_of(server), **settings)
      try:
        return await use(client)
      finally:
        client.close()

  return asyncio.run(run())


def _always(status=200, body=ANSWER, seconds=0.0, **headers):
  async def handler(method, path, body_sent):
    del method, path, body_sent
    await asyncio.sleep(seconds)
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body

  return handler


def test_arrivals_follow_the_rate_of_each_phase():
  due = http_load.arrivals([Phase("slow", 20, 50), Phase("fast", 200, 10)], seed=3)
  assert (np.diff(due) >= 0).all() and 0 <= due[0] and due[-1] < 60
  slow, fast = (due < 50).sum(), (due >= 50).sum()
  assert slow == pytest.approx(1000, abs=150) and fast == pytest.approx(2000, abs=200)
  gaps = np.diff(due[due < 50])
  assert gaps.std() == pytest.approx(gaps.mean(), rel=0.2)  # an exponential's


def test_users_ask_in_proportion_to_their_rank():
  drawn = itertools.islice(http_load.requests_of(["a", "b", "c"], seed=0, k=7), 11_000)
  asked = [json.loads(body) for body in drawn]
  assert all(set(body) == {"user", "k"} and body["k"] == 7 for body in asked)
  counts = sorted(collections.Counter(body["user"] for body in asked).values(), reverse=True)
  np.testing.assert_allclose(np.array(counts) / 11_000, [6 / 11, 3 / 11, 2 / 11], atol=0.02)


def test_an_open_loop_does_not_wait_for_answers():
  phases = [Phase("all", 100, 0.5)]

  def measured():
    found = _with_server(
      _always(seconds=0.4), lambda client: http_load.open_loop(client, BODIES, phases)
    )
    assert max(outcome.late for outcome in found) < 0.3
    return found

  found = undisturbed(measured)
  assert [outcome.due for outcome in found] == http_load.arrivals(phases, 0).tolist()
  assert all(outcome.status == 200 and outcome.seconds >= 0.4 for outcome in found)
  assert found[-1].due > 0.4
  assert {(outcome.source, outcome.width) for outcome in found} == {("model", 9)}


def test_latency_counts_from_the_moment_a_request_was_due():
  async def use(client):
    return await http_load.open_loop(client, BODIES, [Phase("burst", 500, 0.02)])

  found = _with_server(_always(seconds=0.05), use, connections=1)
  assert len(found) > 3
  assert found[-1].seconds > 0.045 * len(found)  # one connection: the last waits for all others
  assert found[0].seconds < found[-1].seconds


def test_a_closed_loop_keeps_its_workers_busy_and_lets_refused_ones_rest():
  busy = 0
  most = 0

  async def handler(method, path, body):
    nonlocal busy, most
    busy += 1
    most = max(most, busy)
    await asyncio.sleep(0.01)
    busy -= 1
    return 200, {}, ANSWER

  def measured():
    found = _with_server(handler, lambda client: http_load.closed_loop(client, BODIES, 5, 0.3))
    assert len(found) > 20
    return found

  found = undisturbed(measured)
  assert most == 5 and found == sorted(found)
  found = _with_server(
    _always(503, b"{}"), lambda client: http_load.closed_loop(client, BODIES, 2, 0.3, pause=0.1)
  )
  assert 2 <= len(found) <= 8


def test_connections_are_kept_and_replaced_where_the_server_closed_them():
  async def use(client):
    return [await client.request("POST", "/", b"{}") for _ in range(5)]

  for keep in (True, False):
    replies = _with_server(_always(retry_after="3"), use, keep)
    assert [(reply.status, reply.body, reply.headers["retry-after"]) for reply in replies] == [
      (200, ANSWER, "3")
    ] * 5


@pytest.mark.parametrize(
  ("handler", "status", "retry_after"),
  [
    (_always(503, b"{}", retry_after="1"), 503, True),
    (_always(503, b"{}"), 503, False),
    (_always(500, b"{}"), 500, False),
    (_always(200, b"no JSON"), 0, False),
    (_always(200, b"[]"), 0, False),
    (_always(200, b"{}"), 0, False),
    (_always(seconds=10), 0, False),
  ],
)
def test_whatever_goes_wrong_is_an_outcome(handler, status, retry_after):
  phases = [Phase("few", 50, 0.1)]
  found = _with_server(
    handler, lambda client: http_load.open_loop(client, BODIES, phases), timeout=3.0
  )
  assert found and {(outcome.status, outcome.retry_after, outcome.source) for outcome in found} == {
    (status, retry_after, "")
  }


def test_no_server_is_an_outcome_too():
  async def run():
    return await http_load.open_loop(Client("http://127.0.0.1:9"), BODIES, [Phase("few", 50, 0.1)])

  assert {outcome.status for outcome in asyncio.run(run())} == {0}


def test_users_and_target_come_from_the_server():
  async def use(client):
    return await http_load.users_of(client, 20), await http_load.target_of(client)

  users, target = _with_server(fake_server.Busy(0.001, 8), use)
  assert users[:2] == ["u0", "u1"] and target == 40.0
  with pytest.raises(ValueError, match="GET /v1/users.*: no 'users' in the answer, status 401"):
    _with_server(_always(401, b"{}"), use)


def test_a_server_that_compiles_is_waited_for():
  left = [True, True, False]

  async def handler(method, path, body_sent):
    del body_sent
    assert (method, path) == ("GET", "/v1/stats")
    return 200, {}, json.dumps({"compiling": left.pop(0)}).encode()

  _with_server(handler, http_load.until_compiled)
  assert not left
  always = _always(body=b'{"compiling": true}')
  with pytest.raises(RuntimeError, match="the server still compiled searches after 0 s"):
    _with_server(always, lambda client: http_load.until_compiled(client, patience=0.01))
  with pytest.raises(ValueError, match="GET /v1/stats: status 404"):
    _with_server(_always(404), http_load.until_compiled)
