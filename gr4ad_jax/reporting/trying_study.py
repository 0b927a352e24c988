"""What the place for trying costs and brings: lists of a trained run with their last ad drawn.

One search serves all settings: they differ in the chances of the draw. For each request all of them
draw by the same random number, so that their lists differ as little as their chances do.
"""

from typing import Any

import jax
import numpy as np

from gr4ad_jax.answering import answers, explore
from gr4ad_jax.config import Config, ConfigError
from gr4ad_jax.decoding.beam import Beams
from gr4ad_jax.decoding.ranker import beams_of
from gr4ad_jax.decoding.searcher import Searcher
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.evaluation import exposure, protocols
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.ranking import steering, steering_study
from gr4ad_jax.requests import request_task
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.zoo import registry

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of --explore_spread
CUT = steering_study.CUT
_BATCH = 64  # requests that are searched at once


def measure(config: Config, inputs: Inputs, split: str = "test") -> dict[str, Any]:
  """A run's lists without a draw, and with one by each weight of the spread.

  Args:
    config: of a trained run; its own --explore and --explore_spread are not read.
    inputs: its data, tokenizer and features.
    split: 'valid' or 'test'.

  Returns:
    For JSON, as `steering_study.measure` has it: `explore_spread`, a list of settings, the first of
    which, 'off', draws nothing.

  Raises:
    ConfigError: a model that predicts no value, or that does not generate UA-SIDs.
  """
  model = registry.build(config, len(inputs.dataset.ads))
  if not getattr(model, "predicts_value", False):
    raise ConfigError(
      f"--study=trying is not allowed: --model={config.model.model} predicts no value"
    )
  requests = protocols.eval_requests(inputs.dataset, split, config.data.target_behavior)
  searcher = Searcher(model, inputs.ecpm, config.search)
  variables = searcher.variables(request_task.load_params(config, model))
  contexts = inputs.contexts(config, split)
  trie = Trie.of(inputs.index)
  uniform_R = np.random.default_rng(0).random(len(requests))
  lists = {"off": [], **{f"{weight:g}": [] for weight in WEIGHTS}}
  for begin in range(0, len(requests), _BATCH):
    some = requests.request[begin : begin + _BATCH]
    # The last batch is filled up with its own requests, so that one shape is compiled.
    batch = contexts.batch(np.resize(some, _BATCH))
    beams = searcher.compiled_on_demand(variables, batch, trie, config.search.beams)
    for name, rows in _lists(jax.device_get(beams), inputs.index, uniform_R, begin, len(some)):
      lists[name].append(rows)
  facts = exposure.Facts.of(
    inputs.dataset, requests, steering.unit(inputs.tokenizer.embed(inputs.dataset.ads))
  )
  rows = [(name, np.array(some, np.int32)) for name, some in lists.items()]
  return {
    "split": split,
    "requests": len(requests),
    "candidates": explore.NEXT,
    "explore_spread": steering_study.curve(rows, requests, facts),
  }


def _lists(beams: Beams, index: SidIndex, uniform_R: np.ndarray, begin: int, count: int):
  """Yields (setting, the ads of a list) for each request of a batch."""
  ad_BK = index.expand(beams.leaf_BW, CUT - 1 + explore.NEXT)
  beam_BK = beams_of(index, beams.leaf_BW, ad_BK)
  for at in range(count):
    entries = answers.ranked_rows(beams, at, ad_BK[at], beam_BK[at])
    yield "off", _padded([row for row, *_ in entries[:CUT]])
    for weight in WEIGHTS:
      bonus = answers.optimism(beams, at, ad_BK[at], beam_BK[at], weight)
      chance_C = explore.propensities(entries, CUT, bonus)
      # The first candidate whose chances, summed up to it, pass the random number; else the last.
      drawn = CUT - 1 + int(np.searchsorted(np.cumsum(chance_C)[:-1], uniform_R[begin + at]))
      shown = (*entries[: CUT - 1], *entries[drawn : drawn + 1])
      yield f"{weight:g}", _padded([row for row, *_ in shown])


def _padded(rows: list[int]) -> list[int]:
  return rows + [-1] * (CUT - len(rows))
