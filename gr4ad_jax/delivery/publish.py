"""Makes of a trained run a folder to take away: weights in half precision, and a card.

    README.md            the card, for people
    card.json            the same: figures beside the run's own, settings, lists to compare with
    config.json          settings of the run, without paths of the machine
    weights.safetensors  parameters
    tokenizer/, index/   codes and ads
    features/            popularity, neighbours, bins of the eCPM

What only training needs is left out: optimiser, events, neighbours by folds of users.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import gr4ad_jax
from gr4ad_jax import checksums, files
from gr4ad_jax import config as config_lib
from gr4ad_jax.answering.recommendation import Recommendation
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import Config, ConfigError, is_published
from gr4ad_jax.evaluation import protocols, report_tables
from gr4ad_jax.ranking import scoring
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests import request_task
from gr4ad_jax.retrieval.towers import FILE as TOWERS
from gr4ad_jax.runs import run
from gr4ad_jax.training import weights
from gr4ad_jax.zoo import registry

CARD = "card.json"
_EXAMPLES = 8  # histories of one popular ad each, whose lists stand in the card
_K = 10  # ads of a list that is compared
_ARRAYS = ("tokenizer/tokenizer.npz", "index/codes.npz", "index/ads.npz")
_FEATURES = ("features/neighbors.npz", "features/trends.npz")
_JSON = ("features/ecpm.json", "features/names.json", "features/log.json")
_OF_THE_MACHINE = ("data_dir", "candidates_cache", "token_file", "state_dir")
Told = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class About:
  """What the card says beside what is measured.

  Attributes:
    name: of the run, such as `online_retail`.
    license: of the weights, an identifier of SPDX in lower case as the Hub has it; empty: not said.
    note: a sentence or more, such as who made the data.
  """

  name: str
  license: str = ""
  note: str = ""


def publish(
  config: Config, out: str, about: About, precision: str = "float16", told: Told = lambda _: None
) -> dict[str, Any]:
  """Writes a published folder, whole or not at all, and compares it with the run.

  Args:
    config: of a trained run of the request models.
    out: the folder; it must not be there yet.
    about: what the card says.
    precision: of the weights, one of `weights.PRECISIONS`.
    told: hears what is being done.

  Returns:
    The card, as `card.json` has it.

  Raises:
    ConfigError: a run that is published already or has --promotions, a folder that is in the way,
      or weights that the precision cannot hold.
    FileNotFoundError: a run without a checkpoint.
    DataError: the run's data are gone, or are no longer what it was trained on.
  """
  if is_published(config.workdir):
    raise ConfigError(f"--workdir={config.workdir} is not allowed: it is published already")
  config_lib.check_trained(config.workdir)
  # Lists need the table of what was displayed and mailed, which is not the run's to hand on.
  if config.data.promotions:
    raise ConfigError(
      f"--workdir={config.workdir} is not allowed: its run has --promotions, and reads a table of "
      "the data set that may not be handed on"
    )
  if os.path.lexists(out):
    raise ConfigError(f"--out={out} is not allowed: it is there already")
  inputs = inputs_lib.prepare_inputs(config)
  inputs_lib.check_same_log(config, inputs.dataset)
  # The folder is compared before it gets its name: what does not fit is never published.
  with files.new_folder(out) as part:
    told("writing weights, codes and features")
    size = write(config, part, precision)
    made = dataclasses.replace(config_lib.load_config(part), search=config.search)
    card = {
      "name": about.name,
      "gr4ad_jax": gr4ad_jax.__version__,
      "license": about.license,
      "note": about.note,
      "precision": precision,
      "parameters": size,
      "step": run.scored_step(config),
      "ads": len(inputs.dataset.ads),
      "codebooks": list(config.sid.codebooks),
    }
    card |= compare(config, made, inputs, told)
    told("comparing lists for single ads")
    card["examples"] = examples(config, inputs)
    card["settings"] = _plain(scoring.settings_of(made))
    files.write_json(os.path.join(part, CARD), card, indent=2)
    files.write_text(os.path.join(part, "README.md"), in_words(card))
  return card


def write(config: Config, folder: str, precision: str) -> int:
  """Writes all of a published folder but its card. Returns the number of parameters.

  Args:
    config: of a trained run.
    folder: that is there.
    precision: as for `publish`.

  Raises:
    ConfigError: weights that the precision cannot hold.
  """
  # A run has towers where it was trained with --retriever.
  towers = os.path.join("features", TOWERS)
  there = (towers,) if os.path.exists(os.path.join(config.workdir, towers)) else ()
  for name in (*_ARRAYS, *_FEATURES, *there):
    arrays = files.load_all(os.path.join(config.workdir, name))
    files.save_arrays(os.path.join(folder, name), compressed=True, **arrays)
  for name in _JSON:
    files.write_json(
      os.path.join(folder, name), files.load_json(os.path.join(config.workdir, name))
    )
  text = config_lib.to_json(_portable(config), summed=True)
  files.write_text(os.path.join(folder, config_lib.CONFIG_FILE), text)
  ads = len(inputs_lib.ad_store.load_ads(os.path.join(folder, "index")))
  params = request_task.load_params(config, registry.build(config, ads))
  return weights.save(folder, params, run.scored_step(config), precision)


def _portable(config: Config) -> Config:
  """The config without paths: of each the last part stays, since some settings ask that there is
  one.
  """
  knobs = {
    name: getattr(getattr(config, section), name)
    for name, (section, _) in config_lib.fields_of(config).items()
  }
  # Only texts with a path in them, and what names this machine in another way.
  bare = {
    name: "" if name in _OF_THE_MACHINE else os.path.basename(os.path.normpath(value))
    for name, value in knobs.items()
    if isinstance(value, str) and (os.sep in value or name in _OF_THE_MACHINE)
  }
  return config_lib.with_knobs(dataclasses.replace(config, workdir=""), bare)


def compare(config: Config, made: Config, inputs: inputs_lib.Inputs, told: Told) -> dict[str, Any]:
  """The test requests by the run and by what was made of it.

  Args:
    config: of the run.
    made: of the published folder.
    inputs: the run's data and features.
    told: hears what is being done.

  Returns:
    `figures` and `of_the_run`, each {metric: {mean, low, high}}; `requests`; `same_lists`, the
    share of requests whose first ten ads are the same in the same order; `same_ads`, the mean
    share of a list's first ten ads that the other has, too; `largest_log_p`, the largest difference
    of an ad's log p. Empty where test has nothing to predict.
  """
  if not inputs.has_targets(config, "test"):
    return {}
  requests = protocols.eval_requests(inputs.dataset, "test", config.data.target_behavior)
  k = max(protocols.protocol_of(inputs.dataset.name).ks)
  ranked = {}
  for name, one in (("figures", made), ("of_the_run", config)):
    told(f"ranking {len(requests)} requests by {'the folder' if one is made else 'the run'}")
    ranked[name] = scoring.rank_run(one, inputs, requests, k)
  systems = {name: ranking.ad_RK for name, ranking in ranked.items()}
  # Both on the same resamples, so that the figures can be compared.
  found = report_tables.results(
    inputs.dataset, "test", systems, target_behavior=config.data.target_behavior
  )
  ours, theirs = ranked.values()
  ours_RK = ours.ad_RK[:, :_K]
  theirs_RK = theirs.ad_RK[:, :_K]
  same_RK = ours_RK == theirs_RK
  # Order aside; places that few beams left empty are no ads.
  common = [
    np.isin(own_K[own_K >= 0], other_K).mean()
    for own_K, other_K in zip(theirs_RK, ours_RK, strict=True)
  ]
  # log p is compared where both have the same ad in the same place.
  both_RK = same_RK & (ours_RK >= 0)
  apart = np.abs(ours.logp_RK[:, :_K][both_RK] - theirs.logp_RK[:, :_K][both_RK])
  return {name: found["systems"][name]["all"] for name in systems} | {
    "requests": len(requests),
    "same_lists": float(same_RK.all(axis=1).mean()),
    "same_ads": float(np.mean(common)),
    "largest_log_p": float(apart.max(initial=0)),
  }


def examples(config: Config, inputs: inputs_lib.Inputs) -> list[dict[str, Any]]:
  """Lists of the run, in float32, for histories of one popular ad: what a test of the folder
  compares with.
  """
  taken_N = np.bincount(inputs.dataset.events.ad, minlength=len(inputs.dataset.ads))
  # Popular ads are known to every run of the data.
  popular = np.argsort(-taken_N, kind="stable")[:_EXAMPLES]
  recommender = Recommender.load(config.workdir, search=config.search)
  history = [[str(inputs.dataset.ads.ad_id[ad])] for ad in popular]
  return [{"history": one, "ads": _listed(recommender.recommend(one, k=_K))} for one in history]


def _listed(found: list[Recommendation]) -> list[dict[str, Any]]:
  return [{"ad_id": ad.ad_id, "log_p": ad.log_p} for ad in found]


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
  return {name: list(x) if isinstance(x, tuple) else x for name, x in settings.items()}


def in_words(card: dict[str, Any]) -> str:
  """README.md: the card for people, with the head that the Hugging Face Hub reads."""
  license_line = [f"license: {card['license']}"] if card["license"] else []
  head = ["---", *license_line, "library_name: gr4ad_jax", "tags:", "- recommendation", "---"]
  body = [
    f"# {card['name']}",
    "",
    f"A run of gr4ad_jax {card['gr4ad_jax']}: model `{card['settings']['model']}`, "
    f"{card['parameters']:,} parameters in {card['precision']}, step {card['step']}; "
    f"{card['ads']:,} ads, codebooks {config_lib.shown(tuple(card['codebooks']))}.",
    *(["", card["note"]] if card["note"] else []),
    "",
    "```python",
    "from gr4ad_jax import Recommender",
    "",
    'recommender = Recommender.from_pretrained("this folder")',
    f"print(recommender.recommend({json.dumps(card['examples'][0]['history'])}))",
    "```",
  ]
  return "\n".join([*head, "", *body, "", *_figures_in_words(card), ""])


def _figures_in_words(card: dict[str, Any]) -> list[str]:
  if "figures" not in card:
    return ["Not evaluated: test has nothing to predict."]
  rows = [
    f"| {metric} | {_interval(card['figures'][metric])} | {_interval(theirs)} |"
    for metric, theirs in card["of_the_run"].items()
  ]
  return [
    f"Test, {card['requests']:,} requests, seen ads by the run's `--seen_ads`; 95 % intervals over "
    "users.",
    "",
    "| | this folder | the run, float32 |",
    "|---|---|---|",
    *rows,
    "",
    f"Of the lists of ten ads {100 * card['same_lists']:.1f} % are the same in the same order, and "
    f"a list shares {100 * card['same_ads']:.2f} % of its ads with the other's. An ad's log p "
    f"moves by {card['largest_log_p']:.1e} at most.",
  ]


def _interval(figure: dict[str, float]) -> str:
  return f"{figure['mean']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"


def load_card(folder: str) -> dict[str, Any]:
  """The card of a published folder.

  Raises:
    FileNotFoundError: there is none.
    DamagedError: it is another than was written.
  """
  path = os.path.join(folder, CARD)
  checksums.check(path)
  return files.load_json(path)
