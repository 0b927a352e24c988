"""Puts a former checkpoint of a learner back into use, in one command.

Servers take it by themselves.
  python -m experiments.rollback --workdir=runs/live

Without --to it is the one that was in use before. The learner promotes no other one until
--release. Servers with --checkpoint=promoted follow within their --reload_seconds.
"""

import os

from absl import flags

from gr4ad_jax import config as config_lib
from gr4ad_jax.config import ConfigError
from gr4ad_jax.learning.promotions import LEARNER, Promotions

from . import flags as flags_lib

_WORKDIR = flags.DEFINE_string("workdir", "", "The run that is served.")
_TO = flags.DEFINE_string(
  "to", "", "Step of a checkpoint that was promoted, or 'start': the run's own; empty: the last "
  "before the one in use.",
)  # fmt: skip
_RELEASE = flags.DEFINE_boolean("release", False, "Let the learner promote again; change nothing.")
_START = "start"


def wanted(promotions: Promotions, text: str) -> int | None:
  """The step that is to be put back, None: the run's own. Raises ConfigError."""
  if text == _START:
    return None
  if text and not config_lib.is_step(text):
    raise ConfigError(f"--to={text} is not allowed: '{_START}' or the number of a step")
  if text:
    return int(text)
  in_use = promotions.in_use
  if in_use is None:
    raise ConfigError(
      "--to= is not allowed: the run's own checkpoint is in use, there is none before it"
    )
  return max((step for step in promotions.kept if step < in_use), default=None)


def main(argv):
  """Moves the pointer."""
  del argv
  if not _WORKDIR.value:
    raise ConfigError("--workdir= is not allowed: name the directory of the run that is served")
  config_lib.load_config(_WORKDIR.value)  # a mistyped path gets no folder
  promotions = Promotions(os.path.join(_WORKDIR.value, LEARNER))
  if _RELEASE.value:
    promotions.release()
    print("the learner may promote again")
    return 0
  step = wanted(promotions, _TO.value)
  promotions.hold(step)
  what = "the run's own checkpoint" if step is None else f"checkpoint {step}"
  print(f"{what} is in use; the learner promotes none until --release")
  return 0


if __name__ == "__main__":
  flags_lib.run(main, local="a learner's checkpoints lie in no bucket")
