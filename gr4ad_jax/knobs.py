"""What a knob is: a field of a frozen dataclass, with its help and the values it allows."""

import dataclasses
from typing import Any


class ConfigError(ValueError):
  """A setting, or a pair of settings, that is not allowed; the message says what is."""


def knob(
  default: Any,
  help: str,
  *,
  choices: tuple | None = None,
  low: float | None = None,
  high: float | None = None,
  free: bool = False,
  place: bool = False,
  of: str = "",
):
  """A dataclass field with what is said of it.

  Args:
    default: its value where none is given.
    help: of its flag.
    choices: what it may be.
    low: the least that it, or every element of a tuple, may be.
    high: the most, likewise.
    free: whether a trained run may change it: it shapes no result.
    place: whether it says where something lies, and so may differ between machines of a job.
    of: the one family that reads it, of a section that others read too; empty: all do.
  """
  about = {"help": help, "choices": choices, "low": low, "high": high}
  return dataclasses.field(
    default=default, metadata=about | {"free": free, "place": place, "of": of}
  )


def shown(value: Any) -> str:
  """A knob's value as its flag is written: `128,256,512`."""
  return (
    ",".join(str(element) for element in value) if isinstance(value, (tuple, list)) else str(value)
  )
