"""UA-SIDs over time: no published code moves, and a new fit keeps the old codes' names."""

import dataclasses
import itertools

import numpy as np
import pytest

from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.requests import renewal
from gr4ad_jax.requests.renewal import Published
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def published(small_run):
  return Published.load(str(small_run), "append")


def test_names_share_most_ads_by_exhaustive_search():
  rng = np.random.default_rng(0)
  before = rng.integers(0, 4, (40, 2))
  after = rng.integers(0, 4, (40, 2))
  after[:25, 0] = (before[:25, 0] + 1) % 4  # mostly one code on
  first, second = renewal.matched(before, after, (4, 4))

  def shared(name, level, weight):
    return sum(w for w, a, b in zip(weight, after[:, level], before[:, level], strict=True)
               if name[a] == b)  # fmt: skip

  every = list(itertools.permutations(range(4)))
  best = max(shared(name, 0, np.ones(40)) for name in every)
  assert shared(first, 0, np.ones(40)) == best and first.tolist() == [3, 0, 1, 2]
  # The second level is decided by the ads whose first level has come out alike.
  weight = np.where(first[after[:, 0]] == before[:, 0], 1.0, 0.01)
  best = max(shared(name, 1, weight) for name in every)
  assert shared(second, 1, weight) == pytest.approx(best)
  assert sorted(second.tolist()) == [0, 1, 2, 3]


def grown(ads):
  """The table with two ads in front, and without its third one."""
  rows = np.delete(np.arange(len(ads)), 2)
  more = ads.take(np.concatenate([[5, 9], rows]))
  ids = np.array(["new1", "new2", *ads.ad_id[rows]], object)
  return dataclasses.replace(more, ad_id=ids)


def test_appended_ads_get_codes_and_no_published_code_moves(published):
  ads = grown(published.ads)
  codes = renewal.append(published, ads)
  old = {str(ad): tuple(code) for ad, code in zip(published.ads.ad_id, published.codes_NT.tolist(),
                                                  strict=True)}  # fmt: skip
  for ad, code in zip(ads.ad_id[2:], codes[2:].tolist(), strict=True):
    assert tuple(code) == old[str(ad)]
  new = {tuple(code) for code in codes[:2].tolist()}
  assert len(new) == 2 and not new & set(old.values())  # nor the code of the ad that is gone
  # The same text as ad05: the same prefix, or the nearest with room.
  assert codes[0, 0] == published.codes_NT[5, 0]
  np.testing.assert_array_equal(renewal.append(published, published.ads), published.codes_NT)


def test_a_fit_that_differs_in_names_alone_comes_back_as_it_was(published):
  tokenizer = published.tokenizer
  names = [np.roll(np.arange(len(table)), 1) for table in tokenizer.centroids]
  renamed = published.codes_NT.copy()
  centroids = []
  for level, (name, table) in enumerate(zip(names, tokenizer.centroids, strict=True)):
    renamed[:, level] = name[renamed[:, level]]
    moved = np.empty_like(table)
    moved[name] = table
    centroids.append(moved)
  renamed[:, -1] = (renamed[:, -1] + 1) % tokenizer.codebooks[-1]
  assert (renamed != published.codes_NT).any(axis=0).all()
  fresh = dataclasses.replace(tokenizer, centroids=tuple(centroids))
  back, codes = renewal.refresh(published, published.ads, fresh, renamed)
  np.testing.assert_array_equal(codes, published.codes_NT)
  used = [np.unique(published.codes_NT[:, level]) for level in range(len(names))]
  for level, table in enumerate(back.centroids):
    np.testing.assert_array_equal(table[used[level]], tokenizer.centroids[level][used[level]])


def test_refreshed_ads_share_no_code(published):
  ads = grown(published.ads)
  tokenizer = published.tokenizer
  fresh = tokenizer.encode(ads)
  _, codes = renewal.refresh(published, ads, tokenizer, fresh)
  assert len({tuple(code) for code in codes.tolist()}) == len(ads)
  assert (codes.min(axis=0) >= 0).all() and (codes.max(axis=0) < tokenizer.codebooks).all()
  # Each ad whose prefix is what it was has its whole code.
  old = {str(ad): code for ad, code in zip(published.ads.ad_id, published.codes_NT, strict=True)}
  same = [
    (code, old[str(ad)])
    for ad, code in zip(ads.ad_id, codes, strict=True)
    if str(ad) in old and (code[:-1] == old[str(ad)][:-1]).all()
  ]
  assert len(same) > 5 and all((code == was).all() for code, was in same)


@pytest.mark.long
@pytest.mark.parametrize("how", ["append", "refresh"])
def test_the_binary_renews_a_runs_codes(published, small_run, tmp_path, how):
  log = tiny.write_log(tmp_path / "log", ads=26)  # two ads more, at the end
  flags = (*tiny.source_flags(log), *tiny.SETTINGS, f"--workdir={tmp_path}/run")
  done = tiny.run("tokenize", *flags, f"--{how}={small_run}")
  assert (done.status, done.err) == (0, "")
  codes = SidIndex.load(str(tmp_path / "run" / "index")).codes_NT
  assert len(codes) == 26 and len({tuple(code) for code in codes.tolist()}) == 26
  same = codes[:24] == published.codes_NT
  if how == "append":
    assert same.all()
  else:  # an assignment of most shared ads keeps at least what a random one keeps on average
    assert same[:, 0].mean() >= 1 / 4
  refused = tiny.run("tokenize", *flags, f"--{how}={tmp_path}/nowhere")
  assert refused.status == 2 and refused.err.startswith(f"error: --{how}={tmp_path}/nowhere is not")
  both = tiny.run("tokenize", *flags, f"--append={small_run}", f"--refresh={small_run}")
  assert both.status == 2 and "--refresh=" in both.err and both.err.count("\n") == 1


@pytest.mark.long
def test_a_trained_run_goes_on_with_appended_codes(small_run, tmp_path):
  log = tiny.write_log(tmp_path / "log", ads=26)
  small = ("--layers=1", "--lazy_layers=0", "--max_steps=2", "--noevaluate")
  flags = (*tiny.source_flags(log), *tiny.SETTINGS, *small, f"--workdir={tmp_path}/run")
  done = tiny.run("train", *flags, f"--append={small_run}", f"--init_from={small_run}")
  assert (done.status, done.err) == (0, "")
  codes = SidIndex.load(str(tmp_path / "run" / "index")).codes_NT
  np.testing.assert_array_equal(codes[:24], Published.load(str(small_run), "append").codes_NT)
  found = tiny.run("recommend", f"--workdir={tmp_path}/run", "--user=u1", "--k=3")
  assert (found.status, found.err) == (0, "")
  study = tiny.run("risks", f"--workdir={tmp_path}/run", "--study=renewal")
  assert (study.status, study.err) == (0, "") and "refresh, not matched" in study.out
