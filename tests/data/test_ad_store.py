"""The ad table inside a run: text survives to the letter, at the memory of the file."""

import dataclasses
import os
import tracemalloc

import numpy as np
import pytest

from gr4ad_jax.data.ad_store import load_ads, same_ads, save_ads
from gr4ad_jax.data.schema import AdTable
from tests.whole_files import assert_replaced_whole

TEXTS = ["Teelöffel, 6 Stück", "", "茶碗 🍵", 'a\nb\t"c"', "e\u0301 é", " spaces "]


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
      np.testing.assert_array_equal(
        getattr(back, field.name), getattr(ads, field.name), err_msg=field.name
      )
  assert (
    back.text.tolist() == TEXTS
    and back.price.dtype == np.float32
    and back.created.dtype == np.int64
  )
  assert same_ads(ads, back) and sorted(os.listdir(tmp_path / "index")) == ["SHA256SUMS", "ads.npz"]


def test_objects_are_stored_without_pickle(tmp_path):
  ads = dataclasses.replace(make_ads(), text=np.array(TEXTS, object))
  save_ads(ads, str(tmp_path))
  assert load_ads(str(tmp_path)).text.tolist() == TEXTS


def test_same_ads_tells_order_content_and_length():
  ads = make_ads()
  assert same_ads(ads, make_ads())
  assert not same_ads(ads, make_ads(TEXTS[:-1]))
  assert not same_ads(ads, make_ads(TEXTS[::-1]))
  assert not same_ads(
    ads, dataclasses.replace(ads, price=np.where(np.isnan(ads.price), 1, ads.price))
  )
  assert not same_ads(ads, dataclasses.replace(ads, price=ads.price * 2))
  assert not same_ads(ads, dataclasses.replace(ads, created=ads.created + 1))
  assert not same_ads(ads, dataclasses.replace(ads, category=np.array(["x"] + [""] * 5)))


def test_no_table_is_told(tmp_path):
  with pytest.raises(FileNotFoundError):
    load_ads(str(tmp_path))


def test_a_file_of_an_older_run_is_read(tmp_path):
  """The layout that every run has had: a column's UTF-8 bytes, and where each text ends in them."""
  names = ("ad_id", "text", "account_id", "category", "conversion_type", "form")
  columns = {name: [f"{name} {i} é" * (i != 1) for i in range(3)] for name in names}
  arrays = {"price": np.array([1, np.nan, 2], np.float32), "created": np.array([5, -1, 7])}
  for name, texts in columns.items():
    arrays[name] = np.frombuffer("".join(texts).encode(), np.uint8)
    arrays[name + "_end"] = np.cumsum([len(text.encode()) for text in texts])
  np.savez_compressed(tmp_path / "ads.npz", **arrays)
  ads = load_ads(str(tmp_path))
  for name, texts in columns.items():
    assert getattr(ads, name).tolist() == texts
  np.testing.assert_array_equal(ads.price, arrays["price"])
  np.testing.assert_array_equal(ads.created, arrays["created"])
  save_ads(ads, str(tmp_path / "again"))
  with np.load(tmp_path / "again" / "ads.npz", allow_pickle=False) as saved:
    assert set(saved) == set(arrays)
    for name, array in arrays.items():
      np.testing.assert_array_equal(saved[name], array, err_msg=name)


@pytest.mark.parametrize(
  "column", ["ad_id", "text", "account_id", "category", "conversion_type", "form"]
)
def test_one_long_text_does_not_lengthen_the_others(tmp_path, column):
  """300 ads and one text of 300,000 characters: 360 MB, were each as long as the longest."""
  ads = make_ads([f"a{i}" for i in range(300)])
  texts = np.array([f"b{i}" for i in range(300)], object)
  texts[7] = "lorem " * 50_000
  tracemalloc.start()
  try:
    save_ads(dataclasses.replace(ads, **{column: texts}), str(tmp_path))
    back = load_ads(str(tmp_path))
    assert same_ads(back, dataclasses.replace(ads, **{column: texts}))
    assert len(np.unique(back.account_N)) == len(set(back.account_id))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert getattr(back, column).tolist() == texts.tolist()
  assert peak < 5e6


def test_equal_texts_are_one_string_in_memory(tmp_path):
  save_ads(
    dataclasses.replace(make_ads(), account_id=np.array(["shop 1", "shop 2"] * 3)), str(tmp_path)
  )
  assert len({id(account) for account in load_ads(str(tmp_path)).account_id}) == 2


def test_accounts_are_numbered_in_order_of_their_names():
  ads = dataclasses.replace(make_ads(), account_id=np.array(["b", "é", "a", "b", "B", ""], object))
  np.testing.assert_array_equal(ads.account_N, [3, 4, 2, 3, 1, 0])


def test_the_table_is_replaced_whole(tmp_path):
  first, second = make_ads(), make_ads(TEXTS[::-1])
  path = str(tmp_path / "ads.npz")
  assert_replaced_whole(
    path, lambda: save_ads(first, str(tmp_path)), lambda: save_ads(second, str(tmp_path))
  )
