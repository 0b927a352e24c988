"""What happened to held-out ads before test changes nothing of a run's inputs: nothing leaks."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.builders import held_out
from gr4ad_jax.config import Config, ConfigError, with_knobs
from gr4ad_jax.requests import inputs as inputs_lib
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")
SHARE = 0.2
ADS = 24


def prepared(folder, share, tower_steps=0):
  """Inputs of a log in a folder, with codes of text, of co-occurrence and, by a tower, of Swing."""
  knobs = {
    "dataset": "ad_log", "ads_path": f"{folder}/ads.csv", "events_path": f"{folder}/events.csv",
    "data_dir": f"{folder}/data", "held_out_ads": share, "codebooks": (4, 3, 6),
    "kmeans_iterations": 2, "tower_steps": tower_steps, "tower_width": 8, "swing_support": 2,
    "cooccurrence_width": 2, "history_slots": 8, "neighbor_slots": 4, "rising_slots": 4,
    "targets": 4, "ecpm_bins": 4, "beams": (8, 8, 8), "fit_splits": "train+valid",
  }  # fmt: skip
  config = with_knobs(Config(), knobs)
  return config, inputs_lib.prepare_inputs(config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Two logs that differ only in which held-out ad was taken before test, and in its value."""
  folder = tmp_path_factory.mktemp("logs")
  table, events = tiny.rows(users=12)
  held = np.flatnonzero(held_out.drawn(ADS, SHARE)).tolist()
  after = dict(zip(held, held[1:] + held[:1], strict=True))
  changed = []
  for user, ad, time, behavior, value, request in events:
    row = int(ad[2:])
    # Of each user's five visits the last one is test.
    if row in after and not request.endswith("-4"):
      ad = f"ad{after[row]:02d}"
      value = 500 + 7 * value
      behavior = "purchase"
    changed.append([user, ad, time, behavior, value, request])
  assert changed != events
  for name, rows in (("plain", events), ("changed", changed)):
    (folder / name).mkdir()
    tiny.write_csv(folder / name / "ads.csv", tiny.AD_HEADER, table)
    tiny.write_csv(folder / name / "events.csv", tiny.EVENT_HEADER, rows)
  return folder / "plain", folder / "changed"


def arrays(config, inputs):
  """All that a model and a server read."""
  found = {"codes": inputs.index.codes_NT, "ecpm": inputs.ecpm.means}
  found |= {"neighbors": inputs.neighbors.ids, "cosine": inputs.neighbors.cosine}
  for name, counts in (
    ("kept", inputs.counts()),
    ("test", inputs.contexts(config, "test").popularity),
  ):
    found |= {f"{name} {k}": v for k, v in vars(counts).items() if isinstance(v, np.ndarray)}
  for split in ("train", "test"):
    batch = inputs.contexts(config, split).batch(inputs.requests(split))
    found |= {f"{split} {name}": x for name, x in batch._asdict().items()}
  table = inputs.dataset.ads
  return found | {"price": table.price, "created": table.created}


def same(one, other):
  return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@pytest.mark.parametrize("tower_steps", [0, pytest.param(2, marks=pytest.mark.long)])
def test_nothing_of_held_out_ads_before_test_is_known(folders, tower_steps):
  plain, changed = (arrays(*prepared(folder, SHARE, tower_steps)) for folder in folders)
  assert plain.keys() == changed.keys()
  assert [name for name in plain if not same(plain[name], changed[name])] == []
  # Of a run without the knob, most of it changes with the log.
  plain, changed = (arrays(*prepared(folder, 0.0, tower_steps)) for folder in folders)
  differ = {name for name in plain if not same(plain[name], changed[name])}
  assert {"codes", "ecpm", "test slot_ad_BS", "train target_ad_BM"} <= differ


def test_their_uasids_are_those_of_ads_that_come_later(folders):
  config, inputs = prepared(folders[0], SHARE)
  held_N, unsold_N = held_out.new_ads(inputs.dataset, SHARE)
  late = np.flatnonzero(held_N | unsold_N)
  known = np.flatnonzero(~(held_N | unsold_N))
  codes_NT = inputs.index.codes_NT
  encoded = inputs.tokenizer.encode(inputs.dataset.ads.take(late), codes_NT[known])
  assert encoded.tolist() == codes_NT[late].tolist() and held_N.sum() == 5
  # In the last visits they are what is to be found.
  requests = inputs.requests("test")
  batch = inputs.contexts(config, "test").batch(requests)
  assert held_N[batch.target_ad_BM[batch.target_mask_BM]].any()
  assert not held_N[batch.slot_ad_BS[batch.slot_ad_BS >= 0]].any()


def test_a_run_that_knows_the_ads_is_no_start(small_run):
  config = inputs_lib.load_config(str(small_run))
  config = dataclasses.replace(
    config,
    workdir="",
    data=dataclasses.replace(config.data, held_out_ads=SHARE),
    training=dataclasses.replace(config.training, init_from=str(small_run)),
  )
  with pytest.raises(ConfigError, match=r"--held_out_ads=0.2 .* --init_from=.* trained with 0.0"):
    inputs_lib.prepare_inputs(config)
