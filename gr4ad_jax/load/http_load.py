"""Load on a recommendation server, over plain sockets, at little cost a request.

In an *open loop* requests come when they are due, whatever became of those before, as users do. In
a *closed loop* each worker waits for its answer. Generator and server may share two cores, so
requests are written as bytes on connections that stay open. A latency counts from the moment the
request was due, not from when it was sent. So a generator that falls behind hides nothing.
"""

import asyncio
import itertools
import json
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Phase(NamedTuple):
  """A stretch of Poisson arrivals: requests that know nothing of each other."""

  name: str
  rate: float  # requests a second
  seconds: float


class Reply(NamedTuple):
  """An HTTP answer. Names of headers are in lower case."""

  status: int
  headers: Mapping[str, str]
  body: bytes


class Outcome(NamedTuple):
  """What became of one request."""

  due: float  # seconds from the beginning of the load
  late: float  # seconds from due to sent
  seconds: float  # from due to the whole answer, or to giving up
  status: int  # of HTTP; 0: no answer
  source: str  # 'model', 'cache' or 'fallback'; '' where there is none
  width: int  # last beam width of the answer; 0 where there is none
  retry_after: bool  # whether a refusal said when to come again


class Client:
  """HTTP/1.1 over connections that are kept. All calls must come from one event loop.

  Args:
    address: as http://127.0.0.1:8080.
    token: bearer token. Empty: none.
    connections: most that are open at once. Further requests wait, and their latency grows.
    timeout: seconds after which a request is given up.
  """

  def __init__(self, address: str, token: str = "", connections: int = 512, timeout: float = 30.0):
    parts = urllib.parse.urlsplit(address)
    self._host = parts.hostname
    # Without a port HTTP means 80.
    self._port = parts.port or 80
    self._timeout = timeout
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    # All that heads have in common, up to the length: made once, as time here is the server's.
    self._fixed = (
      f"Host: {parts.netloc}\r\n{authorization}Content-Type: application/json\r\nContent-Length: "
    )
    self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    self._slots = asyncio.Semaphore(connections)

  async def request(self, method: str, path: str, body: bytes = b"") -> Reply:
    """One exchange.

    Raises:
      OSError: no connection, or one that broke. A kept one that the server had closed is replaced
        once.
      TimeoutError: no whole answer in time.
      ValueError: an answer that is not HTTP/1.1 with a Content-Length.
    """
    head = f"{method} {path} HTTP/1.1\r\n{self._fixed}{len(body)}\r\n\r\n".encode()
    # The time-out begins once a slot is free. The wait for one shows in the latency.
    async with self._slots, asyncio.timeout(self._timeout):
      # The latest first: the longer one is idle, the likelier has the server closed it.
      if self._idle:
        # A kept connection may have been closed by the server meanwhile: then a new one is tried,
        # once.
        try:
          return await self._exchange(self._idle.pop(), head + body)
        except (OSError, EOFError):
          pass
      try:
        return await self._exchange(
          await asyncio.open_connection(self._host, self._port), head + body
        )
      except EOFError as error:
        raise ConnectionError(f"{method} {path}: the server closed the connection") from error

  async def _exchange(self, connection, message: bytes) -> Reply:
    """Writes a request, reads its answer, and keeps the connection where it may be used again."""
    reader, writer = connection
    try:
      writer.write(message)
      first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
      pairs = (line.partition(":") for line in lines if line)
      headers = {name.lower(): value.strip() for name, _, value in pairs}
      if not first.startswith("HTTP/1.1 ") or "content-length" not in headers:
        raise ValueError(f"not an HTTP/1.1 answer with a Content-Length: {first!r}")
      body = await reader.readexactly(int(headers["content-length"]))
    except BaseException:
      # Given up as well: a late answer must not be read as that of the next request.
      writer.close()
      raise
    if headers.get("connection", "").lower() == "close":
      writer.close()
    else:
      self._idle.append(connection)
    # The status stands at a fixed place of the first line.
    return Reply(int(first[9:12]), headers, body)

  def close(self) -> None:
    """Closes the connections that no request holds."""
    while self._idle:
      self._idle.pop()[1].close()


async def users_of(client: Client, count: int = 1000) -> list[str]:
  """User ids that the server knows, at most `count`, which is at most 1000.

  Raises:
    ValueError: it tells none.
  """
  return await _told(client, f"/v1/users?limit={count}", "users")


async def target_of(client: Client) -> float:
  """The latency that the server holds, ms. Raises ValueError where it tells none."""
  return await _told(client, "/v1/stats", "target_ms")


async def until_compiled(client: Client, patience: float = 600.0) -> None:
  """Waits for the searches that a server compiles behind the first one: until they are there it
  has one width alone, and shares its cores with the compiler.

  Raises:
    RuntimeError: it still compiled after `patience` seconds.
    ValueError: the server tells no stats.
  """
  clock = asyncio.get_running_loop().time
  end = clock() + patience
  while clock() < end:
    reply = await client.request("GET", "/v1/stats")
    if reply.status != 200:
      raise ValueError(f"GET /v1/stats: status {reply.status}")
    if not json.loads(reply.body).get("compiling"):
      return
    await asyncio.sleep(0.2)
  raise RuntimeError(f"the server still compiled searches after {patience:.0f} s")


async def _told(client: Client, path: str, field: str):
  """A field, neither empty nor 0, of a JSON answer."""
  reply = await client.request("GET", path)
  found = json.loads(reply.body).get(field) if reply.status == 200 else None
  if not found:
    raise ValueError(f"GET {path}: no {field!r} in the answer, status {reply.status}")
  return found


def requests_of(users: Sequence[str], seed: int, skew: float = 1.0, **fields) -> Iterator[bytes]:
  """Endless bodies of /v1/recommend: the r-th most frequent user asks in proportion to 1 / r^skew.

  Args:
    users: ids. Which of them is the most frequent is drawn.
    seed: of the draw.
    skew: 0 treats users alike.
    **fields: of every request, as k=10, cache=False.
  """
  rng = np.random.default_rng(seed)
  # Which user asks most is drawn, so that the order of ids does not decide.
  bodies = [json.dumps({"user": users[u]} | fields).encode() for u in rng.permutation(len(users))]
  weight = np.arange(1, len(users) + 1, dtype=np.float64) ** -skew
  while True:
    # Drawn by thousands: one draw costs nearly as much, and time here is taken from the server.
    for u in rng.choice(len(users), 4096, p=weight / weight.sum()):
      yield bodies[u]


def arrivals(phases: Sequence[Phase], seed: int) -> np.ndarray:
  """Seconds from the beginning at which requests are due, [n] ascending: Poisson in each phase."""
  rng = np.random.default_rng(seed)
  begin = 0.0
  due = []
  for phase in phases:
    # Once the number is known, the moments of a Poisson process are uniform and independent.
    count = rng.poisson(phase.rate * phase.seconds)
    due.append(begin + np.sort(rng.random(count)) * phase.seconds)
    begin += phase.seconds
  return np.concatenate(due)


async def open_loop(
  client: Client, bodies: Iterator[bytes], phases: Sequence[Phase], seed: int = 0
) -> list[Outcome]:
  """Sends every request when it is due, however the earlier ones fare.

  Returns:
    Outcomes in order of due times.
  """
  clock = asyncio.get_running_loop().time
  begin = clock()
  tasks = []
  for due in arrivals(phases, seed).tolist():
    # Who is late sends at once. A task, so that the loop does not wait for the answer.
    if (wait := begin + due - clock()) > 0:
      await asyncio.sleep(wait)
    tasks.append(asyncio.create_task(_ask(client, next(bodies), begin, due)))
  return list(await asyncio.gather(*tasks))


async def closed_loop(
  client: Client, bodies: Iterator[bytes], workers: int, seconds: float, pause: float = 0.05
) -> list[Outcome]:
  """Each worker asks again when it is answered, and `pause` seconds later where it was not.

  Returns:
    Outcomes in order of sending.
  """
  clock = asyncio.get_running_loop().time
  begin = clock()

  async def work() -> list[Outcome]:
    found = []
    while (now := clock() - begin) < seconds:
      found.append(await _ask(client, next(bodies), begin, now))
      # A server that refuses is not asked again at once by every worker.
      if found[-1].status != 200:
        await asyncio.sleep(pause)
    return found

  done = await asyncio.gather(*(work() for _ in range(workers)))
  return sorted(itertools.chain.from_iterable(done))  # an outcome begins with its due time


async def _ask(client: Client, body: bytes, begin: float, due: float) -> Outcome:
  """One request. Whatever goes wrong is an outcome too."""
  clock = asyncio.get_running_loop().time
  late = clock() - begin - due
  status = 0
  source = ""
  width = 0
  retry_after = False
  try:
    reply = await client.request("POST", "/v1/recommend", body)
    status = reply.status
    retry_after = "retry-after" in reply.headers
    if status == 200:
      answer = json.loads(reply.body)
      source = answer["source"]
      width = (answer["beams"] or [0])[-1]
  except (OSError, TimeoutError, ValueError, LookupError, TypeError):
    status = 0
  return Outcome(due, late, clock() - begin - due, status, source, width, retry_after)


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
  """The quantiles p50, p90 and p99 of latencies, and the most, in ms; of none: None."""
  if not len(seconds):
    return None
  values = 1e3 * np.asarray(seconds)
  p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
  return {"p50": p50, "p90": p90, "p99": p99, "most": float(values.max())}
