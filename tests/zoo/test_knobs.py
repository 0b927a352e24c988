"""Every knob, for every model: changing it changes what is traced, or it is refused."""

import dataclasses
import functools
import pathlib
import types
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr4ad_jax.config import SECTIONS, Config, ConfigError, with_knobs
from gr4ad_jax.decoding.beam import beam_search
from gr4ad_jax.decoding.ranker import Ranker
from gr4ad_jax.decoding.searcher import Searcher
from gr4ad_jax.decoding.trie import Trie
from gr4ad_jax.features.batches import RequestBatch, zero_batch
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.models import knobs
from gr4ad_jax.models.outputs import Outputs
from gr4ad_jax.parallel import row_tables
from gr4ad_jax.requests.item_task import make_item_loss
from gr4ad_jax.requests.request_task import RequestTask
from gr4ad_jax.training import state as state_lib
from gr4ad_jax.zoo import registry
from gr4ad_jax.zoo.items import ItemModel
from tests.zoo.knob_readers import knobs_read

ROOT = pathlib.Path(__file__).parents[2]
ADS = 6
BOOKS = (3, 2)
CODES = np.array([[a, b] for a in range(3) for b in range(2)], np.int32)
INDEX = SidIndex.build(CODES, BOOKS)
SMALL = {
  "codebooks": BOOKS, "beams": (2, 3), "width": 8, "layers": 1, "lazy_layers": 0, "heads": 2,
  "kv_groups": 1, "ecpm_bins": 3, "feature_bins": 2, "encoder_layers": 1, "history_slots": 3,
  "neighbor_slots": 1, "rising_slots": 0, "targets": 2, "compute_dtype": "float32",
}  # fmt: skip
FIELDS = [field.name for kind in SECTIONS.values() for field in dataclasses.fields(kind)]

# A second value of each knob that a model may leave unread, and what it takes for it to matter.
OTHER = {
  "layers": 2, "lazy_layers": 1, "width": 16, "heads": 4, "kv_groups": 2, "kv_layers": 2,
  "kv_split": 2, "feature_bins": 3, "ffn_multiple": 2, "dropout": 0.1, "copy": "history",
  "history_bias": True, "history_bias_ads": 1, "encoder_layers": 2, "encoder_dropout": 0.2,
  "encoder_causal": False, "ecpm_bins": 4, "cross_attention": "fused", "head_piece": 2,
  "compute_dtype": "bfloat16", "remat": "full",
  "item_loss": "bce", "item_negatives": 2, "item_smoothing": 0.1, "item_start": "ppmi",
  "inner_targets": True, "inner_positions": 1, "lambda_ecpm": 0.7, "lambda_mtp": 0.7,
  "lambda_item": 0.7, "value_weight": "sqrt", "depth_weight": 0.3, "user_weight": 0.4,
  "beams": (2, 2), "order": "blend", "value_power": 0.9, "item_weight": 3.0, "guided": False,
  "ecpm_beams": 2, "precut": "beams", "quantize": "int8", "table_optimizer": "adagrad",
  "table_learning_rate": 0.3, "behavior_features": False, "feature_dropout": 0.5,
}  # fmt: skip
WITH = {
  "cross_attention": {"width": 32},  # heads of 16, the least that the kernel takes
  "lazy_layers": {"layers": 2},
  "kv_layers": {"layers": 2},
  "history_bias_ads": {"history_bias": True},
  "item_negatives": {"item_loss": "sampled"},
  "inner_positions": {"inner_targets": True},
  "value_power": {"order": "blend"},
  "table_learning_rate": {"table_optimizer": "adagrad"},
}
OF_THE_RUN = sorted(set(FIELDS) - knobs.ALL - {"model", "objective"})
TRACED = (
  "gr4ad",
  "tiger",
  "sasrec",
  "hstu",
  "two_tower",
)  # the others are GR4AD with another decoder, or a head
OF_GR4AD = ("gr4ad", "onerec_v2", "deepseek_mtp")
TOGETHER = OTHER | {"encoder_causal": True, "item_loss": "sampled", "guided": True}
TOGETHER |= {"cross_attention": "plain"}  # of separate values the kernel knows nothing
"""All second values at once, but for what excludes another."""


class SpiedBatch(RequestBatch):
  """A batch that notes in `seen` which of its columns are read."""

  seen: typing.ClassVar[set[str]] = set()

  def __getattribute__(self, name):
    SpiedBatch.seen.add(name)
    return super().__getattribute__(name)


def config_of(model, **more):
  least = {"layers": 2} if model == "deepseek_mtp" else {}
  return with_knobs(Config(), SMALL | {"model": model} | least | more)


def spied(section, log):
  """A copy of a section that notes each knob that is read, with the value that was read."""
  names = {field.name for field in dataclasses.fields(section)}

  class Spied(type(section)):
    __hash__, __eq__, __repr__ = (
      object.__hash__,
      object.__eq__,
      object.__repr__,
    )  # they read no knob

    def __getattribute__(self, name):
      value = super().__getattribute__(name)
      if name in names:
        log.append((name, value))
      return value

  return Spied(**vars(section))


@functools.cache
def batch_of(data):
  return zero_batch(data, len(BOOKS), rows=2)


class Traced:
  """What a config becomes, as texts of shapes and of programs; each is made when it is asked
  for.
  """

  def __init__(self, config):
    self.config, self.model = config, registry.build(config, ADS)
    self.batch, self.of_codes = batch_of(config.data), not isinstance(self.model, ItemModel)
    self.inputs = (self.batch, self.batch.target_codes_BMT) if self.of_codes else (self.batch,)
    self.ecpm = types.SimpleNamespace(
      clip=1.0, edges=np.arange(2.0), means=np.arange(config.model.ecpm_bins) * 1.0
    )

  @functools.cached_property
  def params(self):
    return jax.eval_shape(
      lambda: nn.meta.unbox(self.model.init(jax.random.key(0), *self.inputs)["params"])
    )

  def parameters(self):
    return str(self.params)

  def forward(self):
    how = {"train": True, "rngs": {"dropout": jax.random.key(0)}} | (
      {} if self.of_codes else {"method": "states"}
    )
    run = lambda params, *inputs: self.model.apply({"params": params}, *inputs, **how)  # noqa: E731
    return _text(run, self.params, *self.inputs)

  def item_loss(self):
    return _text(
      make_item_loss(self.model, np.full(ADS, 1 / ADS)), self.params, self.batch, jax.random.key(0)
    )

  def loss(self):
    """Of the task. What the model says is a stand-in: VSL alone is traced."""
    B, M, T = self.batch.target_codes_BMT.shape
    logp_BMT = jnp.zeros((B, M, T))
    said = Outputs(logp_BMT[..., 0], logp_BMT, jnp.zeros((B, M, 3)), logp_BMT, jnp.zeros(B))
    model = types.SimpleNamespace(
      predicts_value=self.model.predicts_value, apply=lambda *_, **__: said
    )
    about = types.SimpleNamespace(
      config=self.config, model=model, inputs=types.SimpleNamespace(ecpm=self.ecpm)
    )
    return _text(RequestTask.make_loss(about), {}, self.batch, jax.random.key(0))

  def start(self):
    """Vectors of ads that the parameters begin with."""
    line_L, ads = np.arange(4), types.SimpleNamespace(ads=range(ADS))
    inputs = types.SimpleNamespace(
      learned_lines=lambda _: (line_L, line_L // 2, line_L), dataset=ads
    )
    about = types.SimpleNamespace(config=self.config, model=self.model, inputs=inputs)
    return repr(RequestTask._start_ND.func(about))

  def step(self):
    """The optimiser's, of the table of ads."""
    optimizer = state_lib.make_optimizer(self.config.training, 10)
    table = {row_tables.NAME: self.params[row_tables.NAME]}
    return _text(lambda p: optimizer.update(p, optimizer.init(p), p), table)

  def search(self):
    """Of a ranker; a guide's vectors aside."""
    search, model = self.config.search, self.model
    Ranker(model, INDEX, self.ecpm, search)
    variables = jax.eval_shape(Searcher(model, self.ecpm, search).variables, self.params)
    how = {"widths": search.beams, "search": search}
    run = lambda v, batch: beam_search(model, v, batch, Trie.of(INDEX), self.ecpm.means, **how)  # noqa: E731
    return _text(run, variables, self.batch)


def _text(function, *arguments):
  return str(jax.make_jaxpr(function)(*arguments))


def looks(knob):
  """Where a change of a knob shows, cheapest first."""
  of = {
    field.name: section for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)
  }[knob]
  if knob in ("item_start", *knobs.TABLE):
    return ("start",) if knob == "item_start" else ("step",)
  return {"search": ("search",), "objective": ("loss",), "items": ("item_loss",)}.get(
    of, ("parameters", "forward")
  )


def test_every_knob_is_a_models_or_the_lists_or_the_runs():
  assert knobs.ALL == set(OTHER) | knobs.LISTS and set(knobs.ABSENT) < set(OTHER)
  for name in registry.MODELS:
    kind = registry.find(config_of(name))
    assert "reads" in vars(kind) and kind.reads <= knobs.ALL
    assert (knobs.LISTS <= kind.reads) == getattr(kind, "learns_lists", False)
    assert knobs.LISTS <= kind.reads or not knobs.LISTS & kind.reads


def test_a_knob_of_the_run_or_of_the_lists_is_read_somewhere():
  """Of its section, in the library's source; the reader's own test tells what it does."""
  read = set()
  for path in (*ROOT.glob("gr4ad_jax/**/*.py"), *ROOT.glob("experiments/*.py")):
    if "config" not in path.parts and "benchmarks" not in path.parts:  # these build no run
      read |= knobs_read(path.read_text())
  sections = {
    field.name: section for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)
  }
  every = (*OF_THE_RUN, *sorted(knobs.LISTS))
  assert [knob for knob in every if (sections[knob], knob) not in read] == []


def test_an_attribute_of_something_else_reads_no_knob():
  source = """
def f(rules, config: DataConfig | None, many: list[int]):
  other.targets, config.epochs, self.data(many).seed, data.gap
  c, t = rules.config.serving, config.training
  self.mine = c
  config.host = c.port
  return config.targets, t.seed, self.mine.port, run.config.search.beams
"""
  expected = {
    ("data", "targets"),
    ("data", "epochs"),
    ("training", "seed"),
    ("serving", "port"),
    ("search", "beams"),
  }
  ours = {(section, name) for section, name in knobs_read(source) if name not in SECTIONS}
  assert ours == expected


@pytest.mark.parametrize("model", registry.MODELS)
def test_a_knob_that_is_not_read_is_refused(model):
  base = with_knobs(Config(), {"model": model})
  unread = registry.unread(base)
  for knob in sorted(unread - knobs.LISTS):
    changed = with_knobs(base, {knob: OTHER[knob]})
    if OTHER[knob] == knobs.ABSENT.get(knob):  # a switch whose other value is true of the model
      registry.validate(changed, base)
      continue
    with pytest.raises(
      ConfigError, match=f"^--{knob}=.* is not allowed: --model={model} does not read it; .* do"
    ):
      registry.validate(changed, base)
  for knob in sorted(unread & knobs.LISTS):
    value = getattr(base.preference, knob)
    if isinstance(value, (str, tuple)):
      other = value[:1] or "x"
    else:
      other = not value if isinstance(value, bool) else value + 1
    changed = with_knobs(base, {knob: other})
    with pytest.raises(ConfigError, match=f"^--{knob}=.* does not read it; gr4ad, "):
      registry.validate(changed, base)


@pytest.mark.parametrize(
  # What GR4AD reads is read by gr4ad_items and parallel_heads too.
  "model",
  [pytest.param(m, marks=[pytest.mark.long] * (m in OF_GR4AD)) for m in registry.MODELS],
)
def test_a_knob_that_a_model_claims_to_read_is_read_as_it_was_given(model):
  reads = registry.find(config_of(model)).reads - knobs.LISTS - knobs.FEATURES
  given = {knob: value for knob, value in TOGETHER.items() if knob in reads}
  config, log = registry.validate(config_of(model, **given)), []
  parts = {
    name: spied(getattr(config, name), log)
    for name in ("model", "items", "objective", "training", "search")
  }
  one = Traced(dataclasses.replace(config, **parts))
  kept = (
    [] if "remat" not in reads else [("remat", one.model.remat)]
  )  # `build` hands it over by itself
  # `build` may copy a section, and so read all of it, to put what it has no use for right
  log.clear()
  log += kept
  if one.of_codes:
    one.search()
    one.loss()
  one.forward()
  if hasattr(one.model, "items"):
    one.item_loss()
    one.start()
    one.step()
    softmax = spied(dataclasses.replace(config.items, item_loss="softmax"), log)
    Traced(dataclasses.replace(config, items=softmax)).item_loss()
  if "lambda_item" in reads:
    inputs = types.SimpleNamespace(ecpm=one.ecpm)
    about = {"config": one.config, "model": one.model, "inputs": inputs, "_item_loss": lambda: None}
    RequestTask.make_loss(types.SimpleNamespace(**about))
  read = {name for name, value in log if value == given.get(name)}
  assert sorted(set(given) - read) == []


@pytest.mark.parametrize("model", registry.MODELS)
def test_features_are_read_by_the_models_that_say_so(model):
  """--behavior_features fills columns of the batch: see tests/features/test_batches.py."""
  one = Traced(config_of(model))
  one.inputs = (SpiedBatch(*one.batch), *one.inputs[1:])
  SpiedBatch.seen.clear()
  assert one.params
  seen = SpiedBatch.seen & {"slot_features_BSF", "user_features_BF"}
  assert "slot_kind_BS" in SpiedBatch.seen
  assert bool(seen) == (knobs.FEATURES <= one.model.reads)


@pytest.mark.parametrize(
  # gr4ad reads the most knobs, and takes longest; of single ads one model is enough here.
  "model",
  [pytest.param(m, marks=[pytest.mark.long] * (m not in ("tiger", "sasrec"))) for m in TRACED],
)
def test_a_knob_that_is_read_changes_something(model):
  reads, before = registry.find(config_of(model)).reads - knobs.LISTS - knobs.FEATURES, {}
  if model == "gr4ad":
    reads -= knobs.BEAMS  # the search is Tiger's, which is traced faster
  for knob in sorted(reads):
    more = WITH.get(knob, {})
    base = before.setdefault(tuple(more), Traced(config_of(model, **more)))
    other = Traced(config_of(model, **more, **{knob: OTHER[knob]}))
    if not hasattr(base, "seen"):
      base.seen = {}
    for look in looks(knob):
      if look not in base.seen:
        base.seen[look] = getattr(base, look)()
      if getattr(other, look)() != base.seen[look]:
        break
    else:
      pytest.fail(f"--{knob} of {model} changes nothing")
