"""A new model is one file, one line in the registry and one flagfile."""

import json

import pytest

from gr4ad_jax.zoo import registry
from tests import tiny

TOY = '''
import jax.numpy as jnp

from gr4ad_jax.zoo.items import ItemModel, history_ads


class Last(ItemModel):
  """What comes after an ad depends on that ad alone."""

  def make_layers(self):
    pass

  def states(self, batch, *, train=False):
    ads_BS = history_ads(batch)
    return jnp.pad(self.embed(ads_BS), ((0, 0), (1, 0), (0, 0)))
'''


@pytest.fixture(scope="module")
def log(tmp_path_factory):
  return tiny.write_log(tmp_path_factory.mktemp("log"))


def train(log, workdir, model, *more):
  short = (
    "--max_steps=2",
    "--eval_every=0",
    "--noevaluate",
    "--codebooks=6,8",
    "--beams=8,8",
    *more,
  )
  small = tiny.settings(model, *short)
  return tiny.run("train", *tiny.source_flags(log), *small, f"--workdir={workdir}")


def test_a_toy_model_is_trained_and_evaluated(
  log, tmp_path, monkeypatch, compile_cache, no_pictures
):
  (tmp_path / "toy_last.py").write_text(TOY)
  (tmp_path / "toy.flags").write_text("--model=toy_last\n--item_loss=softmax\n")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setitem(registry.MODELS, "toy_last", "toy_last:Last")
  done = train(log, tmp_path / "run", "toy_last", f"--flagfile={tmp_path}/toy.flags")
  assert done.status == 0, done.err
  assert tiny.run("evaluate", f"--workdir={tmp_path}/run").status == 0
  found = json.loads((tmp_path / "run/eval/metrics.json").read_text())
  assert (
    found["settings"]["model"] == "toy_last"
    and 0 <= found["systems"]["toy_last"]["all"]["recall@10"]["mean"] <= 1
  )


# GR4AD goes this way in other tests, and the toy model above. The others differ from them in their
# modules alone, and what those compute has its own tests.
@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(registry.MODELS) - {"gr4ad"}))
def test_every_model_goes_through_training_and_use(log, tmp_path, name, compile_cache):
  layers = ("--layers=3",) if name == "deepseek_mtp" else ()
  done = train(log, tmp_path / name, name, "--item_start=ppmi", *layers)
  assert done.status == 0, done.err
  done = tiny.run("recommend", f"--workdir={tmp_path / name}", "--user=u1", "--json")
  assert done.status == 0 and len(json.loads(done.out)["ads"]) >= 8, done.err


def test_an_unknown_model_is_refused_by_name(log, tmp_path):
  done = train(log, tmp_path / "run", "gr4ad", "--model=bert")
  assert (done.status, "--model=bert is not allowed: any of gr4ad, " in done.err) == (2, True)
  assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_model_of_ads_takes_no_list_objective_and_is_not_served(log, tmp_path, compile_cache):
  done = train(log, tmp_path / "run", "sasrec", "--objective=rspo")
  assert (
    done.status == 2
    and "--objective=rspo is not allowed: --model=sasrec learns no lists" in done.err
  )
  assert train(log, tmp_path / "run", "sasrec").status == 0
  done = tiny.run("serve", f"--workdir={tmp_path}/run", "--port=0")
  assert done.status == 2 and "its model, sasrec, generates no UA-SIDs" in done.err
