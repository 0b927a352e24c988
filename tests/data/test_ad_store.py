"""The ad table inside a run: text survives to the letter."""

import dataclasses

import numpy as np
import pytest

from gr4ad_jax.data.ad_store import load_ads, same_ads, save_ads
from gr4ad_jax.data.schema import AdTable

TEXTS = ["Teelöffel, 6 Stück", "", "茶碗 🍵", "a\nb\t\"c\"", "e\u0301 é", " spaces "]


def make_ads(texts=tuple(TEXTS)):
  n = len(texts)
  text = np.array(texts)
  empty = np.full(n, "")
  price = np.linspace(0.5, 9, n, dtype=np.float32)
  price[1] = np.nan
  ad_id = np.array([f"№{i}" for i in range(n)])
  return AdTable(ad_id, text, text[::-1], empty, empty, empty, price, np.arange(n) - 1)


def test_round_trip(tmp_path):
  ads = make_ads()
  save_ads(ads, str(tmp_path / "index"))
  back = load_ads(str(tmp_path / "index"))
  for field in dataclasses.fields(AdTable):
    if field.name != "vectors":
      np.testing.assert_array_equal(getattr(back, field.name), getattr(ads, field.name), err_msg=field.name)
  assert back.text.tolist() == TEXTS and back.price.dtype == np.float32 and back.created.dtype == np.int64
  assert same_ads(ads, back) and [path.name for path in (tmp_path / "index").iterdir()] == ["ads.npz"]


def test_objects_are_stored_without_pickle(tmp_path):
  ads = dataclasses.replace(make_ads(), text=np.array(TEXTS, object))
  save_ads(ads, str(tmp_path))
  assert load_ads(str(tmp_path)).text.tolist() == TEXTS


def test_same_ads_tells_order_content_and_length():
  ads = make_ads()
  assert same_ads(ads, make_ads())
  assert not same_ads(ads, make_ads(TEXTS[:-1]))
  assert not same_ads(ads, make_ads(TEXTS[::-1]))
  assert not same_ads(ads, dataclasses.replace(ads, price=np.where(np.isnan(ads.price), 1, ads.price)))
  assert not same_ads(ads, dataclasses.replace(ads, price=ads.price * 2))
  assert not same_ads(ads, dataclasses.replace(ads, created=ads.created + 1))
  assert not same_ads(ads, dataclasses.replace(ads, category=np.array(["x"] + [""] * 5)))


def test_no_table_is_told(tmp_path):
  with pytest.raises(FileNotFoundError):
    load_ads(str(tmp_path))
