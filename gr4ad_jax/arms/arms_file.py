"""The arms of a server, as a file tells them.

  {"salt": "spring", "arms": {
    "frozen": {"share": 0.5, "checkpoint": 812},
    "learning": {"share": 0.5, "checkpoint": "promoted"},
    "wide": {"share": 0.1, "workdir": "../other_run", "settings": {"beams": [512, 512, 512]}}}}

Without `workdir` an arm is of the run that is served; a relative one is of the file's folder.
Settings are those of the search and of the server.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from gr4ad_jax.arms.assignment import arm_of, check_shares
from gr4ad_jax.config import Config, ConfigError, is_step, load_config, with_knobs
from gr4ad_jax.config.serving import SearchConfig, ServeConfig

NAMED = ("best", "last", "promoted")
_KNOBS = {field.name for kind in (SearchConfig, ServeConfig) for field in dataclasses.fields(kind)}
_MOST = 16  # arms; each has a search of its own


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to answer.

  Attributes:
    share: of the users.
    workdir: its run; empty: the one that is served.
    checkpoint: 'best', 'last', 'promoted' or a step.
    settings: knobs of search and server that are its own.
  """

  share: float
  workdir: str
  checkpoint: int | str
  settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Arms:
  """All of them, the first is the one that others are compared with, and who is in which."""

  salt: str
  arms: Mapping[str, Arm]

  @property
  def shares(self) -> dict[str, float]:
    """Arm -> share, in order."""
    return {name: arm.share for name, arm in self.arms.items()}

  def of(self, user: str | None) -> str:
    """The arm of a user; the first of who is not known by name."""
    # Who is not known by name has no place on the line, and is answered as before.
    return next(iter(self.arms)) if user is None else arm_of(user, self.shares, self.salt)


def load(path: str) -> Arms:
  """Reads a file of arms.

  Raises:
    FileNotFoundError: there is none.
    ConfigError: it is not allowed; the message names file, arm, field and value.
  """
  try:
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
  # A file of brackets without end makes Python's parser give up.
  except (ValueError, RecursionError) as error:
    raise ConfigError(f"--arms={path} is not JSON: {error}") from error
  _check_fields(found, {"salt", "arms"}, path)
  salt = found.get("salt", "")
  if not isinstance(salt, str):
    raise ConfigError(f"{path}: salt {salt!r} is not allowed: text")
  if not isinstance(found.get("arms"), dict) or not 0 < len(found["arms"]) <= _MOST:
    raise ConfigError(f"{path}: arms is not allowed: an object of 1 to {_MOST} arms")
  # Paths in the file are relative to the file.
  folder = os.path.dirname(path)
  arms = {name: _arm(arm, folder, f"{path}, arm {name}") for name, arm in found["arms"].items()}
  made = Arms(salt, arms)
  check_shares(made.shares, path)
  return made


def config_of(arm: Arm, served: Config) -> Config:
  """The config of an arm, beside that of the run that is served. Not validated.

  Raises:
    FileNotFoundError, ConfigError: its run is not there, or damaged.
  """
  own = served
  if arm.workdir:
    # How answers are served is the server's; what is searched is the arm's.
    own = dataclasses.replace(load_config(arm.workdir), serving=served.serving)
  return with_knobs(own, dict(arm.settings))


def _arm(found: Any, folder: str, what: str) -> Arm:
  _check_fields(found, {"share", "workdir", "checkpoint", "settings"}, what)
  share = found.get("share")
  # True is an int to Python, and no share.
  if isinstance(share, bool) or not isinstance(share, (int, float)):
    raise ConfigError(f"{what}: share {share!r} is not allowed: a number")
  checkpoint = found.get("checkpoint", "best")
  # A number may stand there as text, as flags have it.
  if isinstance(checkpoint, str) and is_step(checkpoint):
    checkpoint = int(checkpoint)
  if checkpoint not in NAMED and not (type(checkpoint) is int and checkpoint >= 0):
    raise ConfigError(
      f"{what}: checkpoint {checkpoint!r} is not allowed: {', '.join(NAMED)} or a step"
    )
  workdir = found.get("workdir", "")
  settings = found.get("settings", {})
  if not isinstance(workdir, str) or not isinstance(settings, dict):
    raise ConfigError(f"{what}: workdir is a path, and settings an object")
  for name in settings:
    if name not in _KNOBS:
      raise ConfigError(f"{what}: setting {name!r} is no knob of search or server")
  # Knobs of several values are tuples, and JSON has lists.
  tuples = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
  place = os.path.join(folder, workdir) if workdir else ""
  return Arm(float(share), place, checkpoint, tuples)


def _check_fields(found: Any, allowed: set[str], what: str) -> None:
  if not isinstance(found, dict):
    raise ConfigError(f"{what} is not allowed: an object with {', '.join(sorted(allowed))}")
  for name in found:
    if name not in allowed:
      raise ConfigError(f"{what}: {name!r} is not known; allowed: {', '.join(sorted(allowed))}")
