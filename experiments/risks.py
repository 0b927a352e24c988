"""Measures what may go wrong with a trained run beyond its accuracy; writes
<workdir>/eval/<study>.json.

python -m experiments.risks --workdir=runs/online_retail --study=reasons
"""

import os
from collections.abc import Callable

from absl import flags

from gr4ad_jax.config import Config, ConfigError, check_trained
from gr4ad_jax.evaluation import report_tables
from gr4ad_jax.parallel.compilation_cache import enable_compilation_cache
from gr4ad_jax.ranking import (
  basket_study,
  new_ad_study,
  new_user_study,
  renewal_study,
  steering_study,
)
from gr4ad_jax.reasons import deletion
from gr4ad_jax.reporting import trying_study
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests.inputs import Inputs

from . import flags as flags_lib
from . import progress

_STUDY = flags.DEFINE_enum(
  "study",
  "reasons",
  ["reasons", "steering", "renewal", "baskets", "new_users", "new_ads", "trying"],
  "What is measured: whether log p falls further without the slots that reasons name; what "
  "--diversity and a quota for small accounts cost and bring; what is left of recall after UA-SIDs "
  "were appended or refreshed; how much of a visit's hidden half is found; recall by how many "
  "events are known of a user; recall of ads that nobody had taken before (--held_out_ads); what "
  "a drawn last place costs, by --explore_spread.",
)
_SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "Which requests are looked at.")
_BESIDE = flags.DEFINE_list(
  "beside", [], "Runs that --study=new_ads asks too, trained with the same --held_out_ads."
)
_LISTS = flags.DEFINE_integer("lists", 500, "Lists that --study=reasons looks at.", lower_bound=2)


def reasons(config: Config, inputs: Inputs) -> tuple[dict, str]:
  """Whether reasons are faithful, see `reasons/deletion`."""
  told = progress.RoundProgress()
  try:
    found = deletion.measure(
      config, inputs, _LISTS.value, _SPLIT.value, told=lambda *at: told("lists", *at)
    )
  except TypeError as error:
    raise ConfigError(f"--study=reasons is not allowed: {error}") from error
  return found, deletion.format_table(found)


def steering(config: Config, inputs: Inputs) -> tuple[dict, str]:
  """Value against diversity and against small accounts' places, see `ranking/steering_study`."""
  found = steering_study.measure(config, inputs, _SPLIT.value)
  steering_study.plot(found, os.path.join(config.workdir, "eval", "steering.png"))
  return found, steering_study.format_table(found)


def renewal(config: Config, inputs: Inputs) -> tuple[dict, str]:
  """Recall after append and refresh, see `ranking/renewal_study`."""
  told = progress.RoundProgress(quiet_seconds=5)
  found = renewal_study.measure(config, inputs, _SPLIT.value, told)
  return found, renewal_study.format_table(found)


def baskets(config: Config, inputs: Inputs) -> tuple[dict, str]:
  """How much of a visit's hidden half is found, see `ranking/basket_study`."""
  found = basket_study.measure(config, inputs, _SPLIT.value)
  return found, basket_study.format_table(found)


def new_users(config: Config, inputs: Inputs) -> tuple[dict, str]:
  """Recall by how many events are known of a user, see `ranking/new_user_study`."""
  found = new_user_study.measure(config, inputs, _SPLIT.value)
  return found, new_user_study.format_table(found)


def new_ads(config: Config, inputs: Inputs) -> tuple[dict, str]:
  """Recall of ads that nobody had taken before, see `ranking/new_ad_study`."""
  found = new_ad_study.measure(config, inputs, _SPLIT.value, _BESIDE.value)
  return found, new_ad_study.format_table(found)


def trying(config: Config, inputs: Inputs) -> tuple[dict, str]:
  """What the place for trying costs and brings, see `reporting/trying_study`."""
  found = trying_study.measure(config, inputs, _SPLIT.value)
  return found, steering_study.format_table(found)


STUDIES: dict[str, Callable[[Config, Inputs], tuple[dict, str]]] = {
  "reasons": reasons,
  "steering": steering,
  "renewal": renewal,
  "baskets": baskets,
  "new_users": new_users,
  "new_ads": new_ads,
  "trying": trying,
}


def main(argv):
  """Measures one thing of the run that --workdir names."""
  del argv
  config = flags_lib.config_from_workdir()
  enable_compilation_cache()
  check_trained(config.workdir)
  if _SPLIT.value in config.training.fitted:
    raise ConfigError(f"--split={_SPLIT.value} is not allowed: the run has learned from it")
  inputs = inputs_lib.prepare_inputs(config)
  inputs_lib.check_same_log(config, inputs.dataset)
  found, table = STUDIES[_STUDY.value](config, inputs)
  path = os.path.join(config.workdir, "eval", f"{_STUDY.value}.json")
  report_tables.write_json(path, found)
  print(f"{table}\nwritten to {path}")
  return 0


if __name__ == "__main__":
  flags_lib.define_flags()
  flags_lib.run(main)
