"""A stream in Redis, for the processes of many machines. Needs the `redis` extra.

A topic is a Redis Stream, `PREFIX:{NAME}`, whose entries have the ids `OFFSET-0`; a hash
`PREFIX:{NAME}:keys`, key -> offset; and a hash `PREFIX:{NAME}:state` with the first offset that is
kept, the last that was given, bytes of the values, and when the last record came. Consumers are the
stream's consumer groups. Braces keep what is of one topic on one machine of a cluster.

Scripts do what must happen at once. Redis writes a script's effects to its append-only file as one,
and answers when it has synced them (`appendfsync always`): so what is acknowledged is durable.
"""

import json
import logging
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gr4ad_jax.data import extras
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.knobs import ConfigError
from gr4ad_jax.streams import stream
from gr4ad_jax.streams.stream import FellBehind, Record

_PART = 1_000  # records that are read, removed or looked through at once
_TRIES = 3  # of what may be asked again without harm
_PAUSE = 0.2  # seconds before the second try; doubled before each further one
_BACK = 1.0  # seconds that a clock may go back without a word
_SECONDS = 30.0  # until a server that does not answer counts as gone
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_log = logging.getLogger(__name__)

# KEYS: stream, keys, state. ARGV: clock ('' the server's), then key, value and checksum of each
# record. Returns how far the clock went back, then each record's offset, 0 for a repeat.
_APPEND = """
local state = redis.call('HMGET', KEYS[3], 'last', 'time', 'bytes')
local last = tonumber(state[1] or '0')
local latest = state[2] or '0'
local bytes = tonumber(state[3] or '0')
local now = ARGV[1]
if now == '' then
  local time = redis.call('TIME')
  now = time[1] .. '.' .. string.format('%06d', time[2])
end
local back = tonumber(latest) - tonumber(now)
if back > 0 then now = latest end
local offsets = {tostring(back)}
for i = 2, #ARGV, 3 do
  local key = ARGV[i]
  if key == '' or redis.call('HSETNX', KEYS[2], key, last + 1) == 1 then
    last = last + 1
    redis.call('XADD', KEYS[1], last .. '-0',
               't', now, 'k', key, 'v', ARGV[i + 1], 'c', ARGV[i + 2])
    bytes = bytes + #ARGV[i + 1]
    offsets[#offsets + 1] = last
  else
    offsets[#offsets + 1] = 0
  end
end
redis.call('HSET', KEYS[3], 'last', last, 'time', now, 'bytes', bytes)
redis.call('HSETNX', KEYS[3], 'first', 1)
return offsets
"""
# KEYS: likewise. ARGV: moment before which all goes ('' none), bytes that may stay ('' any), most
# records. Returns how many went.
_RETAIN = """
local bytes = tonumber(redis.call('HGET', KEYS[3], 'bytes') or '0')
local before = tonumber(ARGV[1])
local size = tonumber(ARGV[2])
local count = 0
local last = nil
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[3])) do
  local fields = entry[2]
  local old = before and tonumber(fields[2]) < before
  if not old and not (size and bytes > size) then break end
  if fields[4] ~= '' then redis.call('HDEL', KEYS[2], fields[4]) end
  bytes = bytes - #fields[6]
  last = entry[1]
  count = count + 1
end
if last then
  local first = tonumber(string.match(last, '^%d+')) + 1
  redis.call('XTRIM', KEYS[1], 'MINID', first .. '-0')
  redis.call('HSET', KEYS[3], 'first', first, 'bytes', bytes)
end
return count
"""
# KEYS: likewise. ARGV: offsets. Returns how many records went.
_ERASE = """
local count = 0
for _, offset in ipairs(ARGV) do
  local id = offset .. '-0'
  local found = redis.call('XRANGE', KEYS[1], id, id)
  if #found == 1 then
    local fields = found[1][2]
    if fields[4] ~= '' then redis.call('HDEL', KEYS[2], fields[4]) end
    redis.call('HINCRBY', KEYS[3], 'bytes', -#fields[6])
    count = count + redis.call('XDEL', KEYS[1], id)
  end
end
return count
"""


class RedisStream:
  """A `Stream` of a server.

  Args:
    url: `redis://[:password@]host:port/<prefix>`, or `rediss://…` for TLS.
    clock: seconds since 1970; None: the server's. That one is read when a record is written, so
      that records of all clients, and of all topics, have their times in the order in which they
      came.

  Raises:
    ConfigError: the URL is of another form, or the server keeps nothing on disk.
    OSError: it cannot be reached.
    ImportError: the `redis` extra is missing.
  """

  def __init__(self, url: str, clock: stream.Clock | None = None):
    self._redis = redis = extras.optional("redis", "redis")
    parts = urllib.parse.urlsplit(url)
    prefix = parts.path.removeprefix("/")
    self._where = f"redis://{parts.hostname}:{parts.port}/{prefix}"  # without the password
    # The prefix stands in names of keys, and braces in it would move them to other nodes.
    if not parts.hostname or not _PREFIX.fullmatch(prefix):
      raise ConfigError(
        f"--stream={self._where} is not allowed: redis://host:port/<prefix>, the prefix of "
        "letters, digits and _ . -"
      )
    self._prefix = prefix
    self._clock = clock
    # No tries of the client's own: an append without keys must not be done twice.
    retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    self._client = redis.Redis(
      host=parts.hostname, port=parts.port or 6379, username=parts.username,
      password=parts.password, ssl=parts.scheme == "rediss", retry=retry, protocol=2,
      socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS,
    )  # fmt: skip
    self._append = self._client.register_script(_APPEND)
    self._retain = self._client.register_script(_RETAIN)
    self._erase = self._client.register_script(_ERASE)
    self._traces = False
    self._check_durable()

  def append(
    self, topic: str, values: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None
  ) -> list[int | None]:
    """See `Stream.append`."""
    records = stream.encoded(values, keys)
    names = self._names(topic)
    if not records:
      return []
    arguments: list[Any] = [repr(self._clock()) if self._clock else ""]
    for key, text in records:
      arguments += [key, text, stream.checksum(key, text)]
    # With keys a second try does no harm: what the first one wrote is a repeat.
    again = all(key for key, _ in records)
    # The script's first answer is how far the clock went back.
    back, *offsets = self._asked(lambda: self._append(names, arguments), again)
    if float(back) > _BACK:
      told = "topic %s: the clock went back %.1f s; its times stand still"
      _log.warning(told, topic, float(back))
    # 0 stands for a repeat, as Lua's nil would end the answer.
    return [offset or None for offset in offsets]

  def read(self, topic: str, after: int, limit: int = 1000) -> list[Record]:
    """See `Stream.read`."""
    name, _, state = self._names(topic)

    def ask() -> tuple[Any, list[Any]]:
      # At once, so that `first` is of the same moment as the records.
      with self._client.pipeline(transaction=True) as pipeline:
        pipeline.hget(state, "first")
        pipeline.xrange(name, min=f"{after + 1}-0", count=limit)
        return pipeline.execute()

    first, entries = self._asked(ask)
    if first is not None and after + 1 < int(first):
      raise FellBehind(topic, after, int(first))
    return [self._record(topic, *entry) for entry in entries]

  def wait(self, topic: str, after: int, timeout: float) -> bool:
    """See `Stream.wait`."""
    name, _, _ = self._names(topic)
    until = time.monotonic() + timeout
    while True:
      if self.end(topic) > after:
        return True
      left = until - time.monotonic()
      if left <= 0:
        return False
      # Shorter than what counts as no answer. A block of 0 would be for ever.
      block = max(1, int(1e3 * min(left, _SECONDS / 2)))
      self._asked(lambda block=block: self._client.xread({name: f"{after}-0"}, 1, block))

  def end(self, topic: str) -> int:
    """See `Stream.end`."""
    _, _, state = self._names(topic)
    return int(self._asked(lambda: self._client.hget(state, "last")) or 0)

  def position(self, topic: str, consumer: str) -> int:
    """See `Stream.position`."""
    name, _, _ = self._names(topic)
    # Redis has no groups of a stream that is not there, and answers with an error.
    if not self._asked(lambda: self._client.exists(name)):
      return 0
    for group in self._asked(lambda: self._client.xinfo_groups(name)):
      if group["name"] == consumer.encode():
        return int(group["last-delivered-id"].split(b"-")[0])
    return 0

  def commit(self, topic: str, consumer: str, offset: int) -> None:
    """See `Stream.commit`."""
    name, _, _ = self._names(topic)
    identity = f"{offset}-0"

    def ask() -> None:
      try:
        self._client.xgroup_create(name, consumer, identity, mkstream=True)
      # The group is there already, and is set to the offset instead.
      except self._redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
          raise
        self._client.xgroup_setid(name, consumer, identity)

    self._asked(ask)

  def retain(self, topic: str, seconds: float | None = None, size: int | None = None) -> int:
    """See `Stream.retain`."""
    before = "" if seconds is None else repr(self._now() - seconds)
    arguments = [before, "" if size is None else size, _PART]
    names = self._names(topic)
    removed = 0
    # In parts: a script holds up all other clients while it runs.
    while part := self._asked(lambda: self._retain(names, arguments)):
      removed += part
    return removed

  def erase(self, topic: str, field: str, value: str) -> int:
    """See `Stream.erase`."""
    names = self._names(topic)
    erased = 0
    at = 0
    end = self.end(topic)
    while at < end:
      # Retention goes on meanwhile; what is gone needs no erasure.
      records, _ = stream.read_kept(self, topic, at, _PART)
      if not records:
        break
      found = [r.offset for r in records if stream.field_of(r.value, field) == value]
      if found:
        erased += self._asked(lambda found=found: self._erase(names, found))
        self._traces = True
      at = records[-1].offset
    return erased

  def compact(self) -> bool:
    """See `Stream.compact`. The server writes its append-only file anew, in the background."""
    if not self._traces:
      return True

    def ask() -> bool:
      try:
        self._client.bgrewriteaof()
        return True
      except self._redis.ResponseError:
        # It is being written already, or a snapshot is.
        return False

    self._traces = not self._asked(ask)
    return not self._traces

  def _now(self) -> float:
    if self._clock:
      return self._clock()
    second, microsecond = self._asked(self._client.time)
    return second + 1e-6 * microsecond

  def close(self) -> None:
    """See `Stream.close`."""
    self._client.close()

  def _names(self, topic: str) -> list[str]:
    """The names of a topic's stream, keys and state."""
    stream.check_topic(topic)
    # Braces keep the three keys on one node of a cluster.
    name = f"{self._prefix}:{{{topic}}}"
    return [name, f"{name}:keys", f"{name}:state"]

  def _check_durable(self) -> None:
    """Refuses a server that keeps nothing, and warns of one that may lose the last second."""
    try:
      found = self._asked(lambda: self._client.config_get("append*"))
    except OSError as error:
      if "unknown command" not in str(error) and "NOPERM" not in str(error):
        raise
      _log.warning("%s does not say whether it keeps an append-only file", self._where)
      return
    if found.get("appendonly") != "yes":
      raise ConfigError(
        f"--stream={self._where} is not allowed: the server keeps nothing on disk; start it with "
        "--appendonly yes --appendfsync always"
      )
    if found.get("appendfsync") != "always":
      _log.warning(
        "%s syncs by %r: a crash of its machine may lose what was acknowledged; set appendfsync "
        "always", self._where, found.get("appendfsync"),
      )  # fmt: skip

  def _record(self, topic: str, identity: bytes, fields: Mapping[bytes, bytes]) -> Record:
    # An id is `OFFSET-0`: the offset stands for the milliseconds that Redis would put there.
    offset = int(identity.split(b"-")[0])
    key = fields[b"k"].decode()
    text = fields[b"v"]
    if int(fields[b"c"]) != stream.checksum(key, text):
      raise DataError(
        f"{self._where}: record {offset} of topic {topic!r} is damaged: its checksum is wrong"
      )
    return Record(offset, float(fields[b"t"]), key, json.loads(text))

  def _asked(self, ask: Callable[[], Any], again: bool = True) -> Any:
    """Asks the server; raises its errors as OSError. `again`: whether asking twice does no harm."""
    for number in range(_TRIES if again else 1):
      # Asked again only where a lost answer does no harm.
      try:
        return ask()
      except (self._redis.ConnectionError, self._redis.TimeoutError) as error:
        failure = error
        if number + 1 < _TRIES and again:  # it may be starting again
          time.sleep(_PAUSE * 2**number)
      except self._redis.RedisError as error:
        raise OSError(f"{self._where}: {error}") from error
    raise OSError(f"{self._where} cannot be reached: {failure}") from failure
