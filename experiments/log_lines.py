"""`--log_format=json`: whatever a binary says is one JSON object a line, for collectors of logs.

A line has `time` (UTC, ISO 8601), `level` and `message`. A traceback is one field. Lines of
progress have their numbers as fields, too. An answer that is an object already, such as that of
`recommend --json`, is passed on as it is.
"""

import datetime
import io
import json
import logging
import math
import sys
import threading
import time
import traceback
from typing import Any, TextIO

LONGEST = 1000  # bytes of a line of the log: some of it a client may have chosen
_LEVELS = {"error:": "ERROR", "warning:": "WARNING"}  # by the first word of a line


def cut(line: str) -> str:
  """A line of at most a kilobyte."""
  whole = line.encode()
  return line if len(whole) <= LONGEST else whole[:LONGEST].decode(errors="ignore") + "…"


def _object(level: str, message: str, when: float | None = None, **fields: Any) -> str:
  """One line: the moment `when` (unix seconds; None: now), and what is said of it."""
  moment = datetime.datetime.fromtimestamp(time.time() if when is None else when, datetime.UTC)
  about = {"time": moment.isoformat(timespec="milliseconds"), "level": level, "message": message}
  # JSON has no number that is not finite, such as the time that is left before the first step.
  bad = {name: None for name, x in fields.items() if isinstance(x, float) and not math.isfinite(x)}
  return json.dumps(about | fields | bad)


class JsonFormatter(logging.Formatter):
  """A record of the log as one object: its logger, and a traceback where it has one."""

  def format(self, record: logging.LogRecord) -> str:
    fields = {"logger": record.name}
    if record.exc_info:
      lines = "".join(traceback.format_exception(*record.exc_info)).splitlines()
      fields["traceback"] = "\n".join(map(cut, lines))
    message = "\n".join(map(cut, record.getMessage().splitlines()))
    return _object(record.levelname, message, record.created, **fields)


class JsonLines(io.TextIOBase):
  """A text stream that writes each whole line as an object.

  Args:
    inner: where the objects go.
  """

  def __init__(self, inner: TextIO):
    super().__init__()
    self.inner = inner
    self._rest = ""
    self._lock = threading.Lock()

  def write(self, text: str) -> int:
    """Takes text; what is no whole line yet waits."""
    with self._lock:
      *lines, self._rest = (self._rest + text).split("\n")
      for line in lines:
        if line.strip():
          self.inner.write(f"{_as_object(line)}\n")
    return len(text)

  def flush(self) -> None:
    """Flushes what was written."""
    self.inner.flush()

  def finish(self) -> None:
    """Writes a last line that has no end."""
    if self._rest.strip():
      self.write("\n")
    self.flush()

  def fileno(self) -> int:
    """Of the stream inside."""
    return self.inner.fileno()

  def writable(self) -> bool:
    """True."""
    return True

  @property
  def encoding(self) -> str:
    """Of the stream inside."""
    return self.inner.encoding


def _as_object(line: str) -> str:
  if line.startswith("{"):
    try:
      json.loads(line)
      return line
    except ValueError:  # braces of another kind
      pass
  level = _LEVELS.get(line.split(" ", 1)[0], "INFO")
  return _object(level, line.partition(": ")[2] if level != "INFO" else line)


def is_on() -> bool:
  """Whether standard output is written as objects."""
  return isinstance(sys.stdout, JsonLines)


def say(line: str, **fields: Any) -> None:
  """A line of progress on standard output: as it is, or as an object with its numbers."""
  print(_object("INFO", line, **fields) if is_on() else line, flush=True)


_changed: list[tuple[logging.StreamHandler, logging.Formatter | None]] = []


def begin() -> None:
  """From here on, both streams and what the log writes to standard error are objects."""
  if is_on():
    return
  before = sys.stderr
  sys.stdout = JsonLines(sys.stdout)
  sys.stderr = JsonLines(before)
  for handler in logging.getLogger().handlers:
    handler = getattr(handler, "python_handler", handler)  # absl's hands all on to one of its own
    if getattr(handler, "stream", None) is before:
      _changed.append((handler, handler.formatter))
      handler.setFormatter(JsonFormatter())
      handler.setStream(sys.stderr)
  sys.excepthook = _uncaught


def end() -> None:
  """Writes what is left, and gives the streams back."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if isinstance(stream, JsonLines):
      stream.finish()
      setattr(sys, name, stream.inner)
  while _changed:
    handler, formatter = _changed.pop()
    handler.setFormatter(formatter)
    handler.setStream(sys.stderr)
  sys.excepthook = sys.__excepthook__


def _uncaught(kind: type[BaseException], error: BaseException, where: Any) -> None:
  lines = "".join(traceback.format_exception(kind, error, where))
  text = " ".join(str(error).split()) or kind.__name__
  print(_object("CRITICAL", text, traceback=lines), file=sys.stderr, flush=True)
