"""A trained run as a folder that needs none of this package: its search as StableHLO.

What reads it is jax, numpy, and flatbuffers, a small package by which `jax.export` reads files.

search.stablehlo  the beam search, for any number of requests; weights and index are its arguments
weights.npz       parameters by path; with --quantize as small numbers and their scales
index.npz         trie of the UA-SIDs, and which ads hang where
spec.json         what goes in and comes out, with the names of all features; ids of the ads
example.npz       a request without a history, and its list
load.py           reads all that
README.md         says so to whoever gets the folder
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from gr4ad_jax import files
from gr4ad_jax.answering.recommender import Recommender
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.data import visits
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.data.extras import optional
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.delivery import take_away
from gr4ad_jax.features.batches import USER_FEATURES, RequestBatch, slot_features, zero_batch
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.models.gr4ad import GR4AD
from gr4ad_jax.models.quantized import quantize
from gr4ad_jax.requests import request_task
from gr4ad_jax.zoo import registry
from gr4ad_jax.zoo.items import ItemModel

PLATFORMS = ("cpu", "cuda", "tpu")
SLOT_KINDS = ("padding", "history", "neighbor", "rising")
# Array of a request -> its field of a `RequestBatch`. UA-SIDs of slots follow from their ads.
INPUTS = {
  "slot_kind": "slot_kind_BS",
  "slot_ad": "slot_ad_BS",
  "slot_features": "slot_features_BSF",
  "user_features": "user_features_BF",
}
_CODES = {"slot_codes": "slot_codes_BST"}
_EXAMPLE_ADS = 5
_README = """\
# A search over {ads:,} ads

The beam search of a trained model (`{model}`, checkpoint {checkpoint}), lowered by `jax.export` for {platforms}.
It was written by JAX {jax}. Later releases read it for six months at least.

    pip install jax numpy flatbuffers
    python load.py

`jax.export` reads and writes its files by flatbuffers, a small package in Python alone that jax does not bring with it. Nothing else is needed.
The second line answers the request of `example.npz`, and compares with the list that was exported. In Python:

    model = Model(folder)  # of load.py
    model.recommend(requests, k=10)  # (ad_id, log_p, score, ecpm) of each request's best ads

| file | what it is |
|---|---|
| `search.stablehlo` | the search, for any number of requests |
| `weights.npz` | the parameters |
| `index.npz` | the trie of the ads' codes, and which ads hang where |
| `spec.json` | shapes and types of a request's arrays, names of all features in their order, ids of the ads |
| `example.npz` | a request without a history, and its list |
| `load.py` | the class `Model` |
"""  # noqa: E501, lines of Markdown


def check(config: Config) -> None:
  """Raises ConfigError for a run whose answers are more than one search."""
  if issubclass(registry.find(config), ItemModel):
    raise ConfigError(
      f"--model={config.model.model} is not allowed: it scores single ads; a search over UA-SIDs "
      "can be exported"
    )
  # What a second step would have to do after the search, and an export has none.
  for flag, value, plain in (
    ("seen_ads", config.search.seen_ads, "left"),
    ("item_weight", _item_weight(config), 0.0),
    ("diversity", config.search.diversity, 0.0),
    ("quota_share", config.search.quota_share, 0.0),
    ("quantize", config.search.quantize if config.search.quantize == "fp8" else "", ""),
  ):
    if value != plain:
      allowed = f"--{flag}={plain}" if plain != "" else "'none' or 'int8'"
      raise ConfigError(f"--{flag}={value} is not allowed in an exported search: {allowed} is")


def _item_weight(config: Config) -> float:
  return 0.0 if "item_weight" in registry.unread(config) else config.search.item_weight


def export(recommender: Recommender, folder: str) -> dict[str, Any]:
  """Writes a folder, whole or not at all.

  Matrix products of a run with --compute_dtype=auto are float32: one module serves all platforms.

  Args:
    recommender: the run, with the search that is exported.
    folder: a new one.

  Returns:
    What `spec.json` says.

  Raises:
    ConfigError: a run that `check` refuses, or a folder that is there.
  """
  config = recommender.config
  check(config)
  # Asked for before any work.
  optional("flatbuffers", "export")  # jax.export writes with it
  if os.path.exists(folder):
    raise ConfigError(f"--out={folder} is not allowed: it is there already; name a new folder")
  # The very checkpoint that the recommender answers by, since a newer one may have come.
  step = recommender.step
  # 'auto' is another dtype on each platform; the module is one for all of them. So it has products
  # in place of the kernel, whose form in a file is not promised to last.
  dtype = config.model.compute_dtype
  sizes = dataclasses.replace(
    config.model,
    compute_dtype="float32" if dtype == "auto" else dtype,
    cross_attention="plain",
  )
  config = dataclasses.replace(config, model=sizes)
  model = registry.build(config, len(recommender.ads))
  index = SidIndex.load(os.path.join(config.workdir, "index"))
  ecpm = EcpmBins.load(os.path.join(config.workdir, "features"))
  params = request_task.load_params(config, model, step)
  # Quantised before it is lowered, so that the module's arguments are the small numbers.
  variables = quantize(params, config.search.quantize)
  weights = flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/")
  exported = lowered(model, config, index, ecpm, weights)
  spec = _spec(config, recommender, exported)
  with files.new_folder(folder) as part:
    made = pathlib.Path(part)
    (made / "search.stablehlo").write_bytes(exported.serialize())
    np.savez(made / "weights.npz", **weights)
    np.savez(made / "index.npz", **_index_arrays(index))
    (made / "spec.json").write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
    np.savez(made / "example.npz", **_example(recommender))
    (made / "README.md").write_text(_in_words(spec), encoding="utf-8")
    shutil.copy(take_away.__file__, made / "load.py")
  return spec


def lowered(
  model: GR4AD, config: Config, index: SidIndex, ecpm: EcpmBins, weights: Mapping[str, Any]
) -> jax.export.Exported:
  """The search as a function (weights, batch, trie) -> ranked UA-SIDs, for all `PLATFORMS`.

  Args:
    model: the module.
    config: of the run.
    index: gives the shapes of the trie.
    ecpm: money of the eCPM bins.
    weights: the model's variables by path.

  Returns:
    A function of dicts of arrays whose leading axis, B requests, may have any length.
  """
  means = np.asarray(ecpm.means, np.float32)
  fanout = index.fanout
  # Gives shapes and types alone. What the search does not read stays 0.
  blank = zero_batch(config.data, len(config.sid.codebooks))

  def one(weights, row, trie):
    # Of a batch of one: the search asks for its length, which `vmap` leaves open outside.
    # `vmap` maps over single rows, and the search takes batches: [None] makes one of each.
    fields = {name: row[key][None] for key, name in (INPUTS | _CODES).items()}
    batch = RequestBatch(**(jax.tree.map(jnp.asarray, blank)._asdict() | fields))
    levels = range(len(fanout))
    nodes = Trie(
      tuple(trie[f"child_start_{t}"] for t in levels),
      tuple(trie[f"node_code_{t}"] for t in levels),
      None,
      fanout,
    )
    # The names of the weights are their paths in the tree.
    variables = flax.traverse_util.unflatten_dict(weights, sep="/")
    found = beam_search(
      model, variables, batch, nodes, means, widths=config.search.beams, search=config.search
    )
    return {
      "leaf": found.leaf_BW[0],
      "log_p": found.logp_BW[0],
      "score": found.score_BW[0],
      "ecpm": found.value_BW[0],
      "codes": found.codes_BWT[0],
    }

  # A symbolic size: one module for any number of requests.
  (rows,) = jax.export.symbolic_shape("b")
  # A loop over one element names it inside the comprehension.
  batch = {
    key: jax.ShapeDtypeStruct((rows, *field.shape[1:]), field.dtype)
    for key, name in (INPUTS | _CODES).items()
    for field in [getattr(blank, name)]
  }
  shapes = [
    {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
    for arrays in (weights, _trie_arrays(index))
  ]
  # Weights and trie are shared by all rows, and only the batch is mapped over.
  search = jax.jit(jax.vmap(one, in_axes=(None, 0, None)))
  return jax.export.export(search, platforms=PLATFORMS)(shapes[0], batch, shapes[1])


def _trie_arrays(index: SidIndex) -> dict[str, np.ndarray]:
  starts = {f"child_start_{t}": x for t, x in enumerate(index.child_start)}
  return starts | {f"node_code_{t}": x for t, x in enumerate(index.node_code)}


def _index_arrays(index: SidIndex) -> dict[str, np.ndarray]:
  leaves = {"leaf_start": index.leaf_start, "leaf_ads": index.leaf_ads, "codes": index.codes_NT}
  return _trie_arrays(index) | leaves


def arrays_of(batch: RequestBatch) -> dict[str, np.ndarray]:
  """What an exported search reads of a batch."""
  return {key: getattr(batch, name) for key, name in INPUTS.items()}


def _example(recommender: Recommender) -> dict[str, np.ndarray]:
  """A request without a history where the log ends, and the list that this package gives it."""
  nothing = visits.no_events()
  batch = recommender.batch(nothing, recommender.default_moments(nothing))
  found = recommender.recommend([], k=_EXAMPLE_ADS)
  return arrays_of(batch) | {
    "ad_id": np.array([[ad.ad_id for ad in found]]),
    "score": np.array([[ad.score for ad in found]], np.float32),
  }


def _in_words(spec: Mapping[str, Any]) -> str:
  """The README of a folder."""
  platforms = ", ".join(spec["platforms"])
  return _README.format_map({**spec, "ads": len(spec["ads"]), "platforms": platforms})


def _spec(config: Config, recommender: Recommender, exported: jax.export.Exported) -> dict:
  blank = zero_batch(config.data, len(config.sid.codebooks))
  fields = {key: getattr(blank, name) for key, name in INPUTS.items()}
  return {
    "form": 1,
    "jax": jax.__version__,
    "platforms": list(exported.platforms),
    "model": config.model.model,
    "checkpoint": recommender.step,
    "compute_dtype": config.model.compute_dtype,
    "quantize": config.search.quantize,
    "codebooks": list(config.sid.codebooks),
    "beams": list(config.search.beams),
    "order": config.search.order,
    "inputs": {
      key: {"shape": ["requests", *field.shape[1:]], "dtype": str(field.dtype)}
      for key, field in fields.items()
    },
    "slots": {
      "history": config.data.history_slots,
      "neighbor": config.data.neighbor_slots,
      "rising": config.data.rising_slots,
    },
    "slot_kinds": list(SLOT_KINDS),
    "slot_features": list(slot_features(config.data)),
    "user_features": list(USER_FEATURES),
    "outputs": {
      "leaf": "node of the last level, -1 where the beam is empty",
      "log_p": "natural log of the UA-SID's probability",
      "score": "what the list is ordered by",
      "ecpm": "expected value, money",
      "codes": "UA-SID",
    },
    "ads": list(map(str, recommender.ads.ad_id)),
  }
