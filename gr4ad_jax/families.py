"""The families of models that a run can be of: `--family=<name>`.

A family is known by the names of its parts, so this table imports none of them. Whoever needs a
part loads it then.
"""

import dataclasses
import importlib
from typing import Any

from gr4ad_jax.knobs import ConfigError


@dataclasses.dataclass(frozen=True)
class Family:
  """Where the parts of a family are.

  Attributes:
    task: module:class of its `training.task.Task`.
    sections: shared sections of the config that its runs read.
    own: module:class of a section of its own, a frozen dataclass of knobs; empty: it has none. The
      module is imported by every binary that has flags, so it should import little.
    report: module:function that scores a trained run; see `runs.run.report`, the default.
  """

  task: str
  sections: tuple[str, ...] = ("training",)
  own: str = ""
  report: str = "gr4ad_jax.runs.run:report"


REQUESTS = "requests"

FAMILIES = {
  REQUESTS: Family(
    "gr4ad_jax.requests.request_task:RequestTask",
    sections=(
      "data", "sid", "model", "items", "objective", "preference", "reward", "training", "search",
      "serving", "learn",
    ),
    report="gr4ad_jax.delivery.examples:report",
  ),
  "btdnet": Family(
    "gr4ad_jax.segmentation.task:SegmentationTask",
    own="gr4ad_jax.scenes.sections:SegmentationConfig",
    report="gr4ad_jax.segmentation.report:report",
  ),
}  # fmt: skip
"""Name -> parts. A new family is one line here."""


def find(name: str) -> Family:
  """The family of a name. Raises ConfigError where there is none."""
  if name not in FAMILIES:
    raise ConfigError(f"--family={name} is not allowed: any of {', '.join(FAMILIES)}")
  return FAMILIES[name]


def part(place: str) -> Any:
  """What stands at module:name; the module is imported."""
  module, name = place.split(":")
  return getattr(importlib.import_module(module), name)


def task_of(name: str) -> Any:
  """The Task class of a family. Raises ConfigError where there is no such family."""
  return part(find(name).task)


def own_section(name: str) -> type | None:
  """The class of a family's own section of the config; None: it has none. Raises as `find` does."""
  own = find(name).own
  return part(own) if own else None
