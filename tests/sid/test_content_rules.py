"""Templates word for word, and what vectors of files must be like."""

import pathlib
import sys
import types

import numpy as np
import pytest

from gr4ad_jax.data import schema
from gr4ad_jax.sid import encoders, templates

FULL = {
  "live_stream": "Live stream by shop0. red mug. about tea",
  "off_site": "red mug. industry tea. advertiser shop0. goal order",
  "virtual_product": "Virtual product. red mug. genre tea. value 2.50",
  "product": "red mug. product of tea. price 2.50",
  "short_video": "Short video. red mug. topic tea. creator shop0",
  "local_service": "Local service. red mug. trade tea. from 2.50",
  "": "red mug. tea",
}
LESS = {  # without text, category, account, conversion type and price, one after the other
  "text": ("Live stream by shop0. about tea", "industry tea. advertiser shop0. goal order", "tea"),
  "category": ("Live stream by shop0. red mug", "red mug. advertiser shop0. goal order", "red mug"),
  "account_id": ("red mug. about tea", "red mug. industry tea. goal order", "red mug. tea"),
  "conversion_type": (
    FULL["live_stream"],
    "red mug. industry tea. advertiser shop0",
    "red mug. tea",
  ),
}


def one_ad(make, form, **columns):
  """An ad of which all fields are known but those that are given."""
  known = {
    "category": ["tea"],
    "conversion_type": ["order"],
    "price": np.float32([2.5]),
    "form": [form],
  }
  return make[0](1, **{name: np.asarray(value) for name, value in (known | columns).items()})


def test_texts_are_those_of_the_templates(make):
  for form, text in FULL.items():
    assert templates.verbalise(one_ad(make, form)) == [text]
  for field, texts in LESS.items():
    for form, text in zip(("live_stream", "off_site", ""), texts, strict=True):
      assert templates.verbalise(one_ad(make, form, **{field: [""]})) == [text]
  for unknown in (np.nan, np.inf):
    priced = {
      "product": "red mug. product of tea",
      "virtual_product": "Virtual product. red mug. genre tea",
    }
    for form, text in priced.items():
      assert templates.verbalise(one_ad(make, form, price=np.float32([unknown]))) == [text]
  assert templates.verbalise(one_ad(make, "", text=[""], category=[""])) == [""]
  assert templates.verbalise(one_ad(make, "product", price=np.float32([0]))) == [
    "red mug. product of tea. price 0.00"
  ]


def test_mistakes_of_forms_and_templates_are_named(make):
  ads = make[0](4, form=np.array(["", "product", "radio", "radio"]))
  known = "live_stream, local_service, off_site, product, short_video, virtual_product"
  with pytest.raises(schema.DataError) as told:
    templates.verbalise(ads)
  assert str(told.value) == f"ads.form, row 3 (ad ad2): 'radio' is not in {known}, nor empty"
  with pytest.raises(schema.DataError) as told:
    templates.verbalise(ads, {"product": ("{text}",), "radio": ("{text} by {b} and {a}",)})
  fields = "text, account_id, category, conversion_type, price"
  text = "template 'radio': unknown field a, b in '{text} by {b} and {a}'; fields are " + fields
  assert str(told.value) == text
  assert templates.verbalise(make[0](1), {}) == ["red mug"]  # no form, no entry needed


def refused(ads, encoder):
  """What is told of an encoder's vectors."""
  with pytest.raises(schema.DataError) as told:
    encoders.encode(ads, encoder)
  return str(told.value)


def test_vectors_of_the_wrong_kind_are_refused(make, tmp_path, monkeypatch):
  monkeypatch.setattr(encoders, "CHUNK", 2)
  path = str(tmp_path / "v.npy")
  for vectors, words in (
    (np.ones(5), f"{path}: vectors have shape (5,); [5, D] is needed, a row per ad"),
    (np.ones((5, 0)), f"{path}: vectors have shape (5, 0); [5, D] is needed, a row per ad"),
    (np.ones((5, 2, 2)), f"{path}: vectors have shape (5, 2, 2); [5, D] is needed, a row per ad"),
    (np.ones((5, 2), bool), f"{path}: vectors have dtype bool; numbers are needed"),
    (
      np.where(np.arange(10).reshape(5, 2) > 6, np.nan, 1),
      f"{path}, row 4 (ad ad3): the vector is not finite",
    ),
    (
      np.where(np.arange(10).reshape(5, 2) == 9, 1e200, 1),
      f"{path}, row 5 (ad ad4): the vector is not finite",
    ),
  ):
    np.save(path, vectors)
    with np.errstate(over="ignore"):
      assert refused(make[0](5), path) == words
  bad = make[0](2, vectors=np.float32([[1, 2], [np.nan, 0]]))
  assert refused(bad, "wordllama") == "ads.vectors, row 2 (ad ad1): the vector is not finite"
  np.save(path, np.array([[3, 4], [0, 2], [0, 0]]))
  np.testing.assert_allclose(
    encoders.encode(make[0](3), path), [[0.6, 0.8], [0, 1], [0, 0]], rtol=1e-6
  )
  lazy = encoders.unit_rows(make[0](3), path)
  assert isinstance(lazy._vectors, np.memmap) and lazy.shape == (3, 2)
  np.testing.assert_allclose(lazy[np.array([0, 2])], [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_parquet_rows_are_checked_and_taken_in_table_order_without_ids(make, tmp_path):
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  path = str(tmp_path / "v.parquet")
  pq.write_table(pa.table({"vector": [[0.0, 2.0], [5.0, 0.0], [3.0, 4.0]]}), path)
  np.testing.assert_allclose(
    encoders.encode(make[0](3), path), [[0, 1], [1, 0], [0.6, 0.8]], rtol=1e-6
  )
  assert "vectors have shape (3, 2); [4, D]" in refused(make[0](4), path)
  pq.write_table(
    pa.table({"ad_id": [7, 11], "vector": [[0.0, 2.0], [5.0, 0.0]]}), path
  )  # ids are compared as text
  np.testing.assert_array_equal(
    encoders.encode(make[0](2, ad_id=np.array(["11", "7"])), path), [[1, 0], [0, 1]]
  )
  told = refused(make[0](3, ad_id=np.array(["7", "x", "y"])), path)
  assert told == f"{path}, column ad_id: no vector for ad x (2 ads lack one)"
  for rows, row, width in (
    ([[1.0, 2.0], None], 2, 2),
    ([[1.0, 2.0], [3.0, 4.0], [1.0, None]], 3, 2),
    ([None, [1.0]], 1, 0),
    ([[1.0], [1.0, 2.0]], 2, 1),
  ):
    pq.write_table(pa.table({"vector": pa.array(rows, pa.list_(pa.float64()))}), path)
    assert (
      refused(make[0](len(rows)), path)
      == f"{path}, column vector, row {row}: {width} numbers are needed"
    )
  pq.write_table(pa.table({"vector": pa.array([], pa.list_(pa.float64()))}), path)
  assert "vectors have shape (0,)" in refused(make[0](1), path)


def test_a_model_s_folder_is_read_from_this_disk_alone(make, tmp_path, monkeypatch):
  asked = []

  def load(folder, **options):
    asked.append((folder, options))
    return types.SimpleNamespace(
      encode=lambda texts, **_: np.array([[len(text), 3.0] for text in texts])
    )

  encoders._sentence_model.cache_clear()
  monkeypatch.setitem(
    sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=load)
  )
  found = encoders.encode(make[0](2, text=np.array(["abcd", ""])), str(tmp_path))
  np.testing.assert_allclose(found, [[0.8, 0.6], [0, 1]], rtol=1e-6)
  assert asked == [(str(tmp_path), {"local_files_only": True})]


@pytest.mark.parametrize(
  ("module", "encoder", "words"),
  [
    ("wordllama", "wordllama", r"wordllama is missing: pip install 'gr4ad_jax\[text\]'"),
    (
      "sentence_transformers",
      "",
      "sentence_transformers is missing: pip install sentence-transformers",
    ),
    ("pyarrow.parquet", "v.parquet", r"pyarrow is missing: pip install 'gr4ad_jax\[data\]'"),
  ],
)
def test_a_missing_package_is_named(make, tmp_path, monkeypatch, module, encoder, words):
  encoders._wordllama_model.cache_clear()
  encoders._sentence_model.cache_clear()
  monkeypatch.setitem(sys.modules, module, None)
  path = (
    encoder if encoder == "wordllama" else str(tmp_path / encoder) if encoder else str(tmp_path)
  )
  (tmp_path / "v.parquet").write_bytes(b"")
  with pytest.raises(ImportError, match=words):
    encoders.encode(make[0](1), path)


def test_the_encoder_is_read_from_the_package_and_never_from_the_network(monkeypatch):
  wordllama = pytest.importorskip("wordllama")
  asked = []
  monkeypatch.setattr(wordllama.WordLlama, "load", lambda **how: asked.append(how))
  encoders._wordllama_model.__wrapped__()
  folder = str(pathlib.Path(wordllama.__file__).parent)
  assert asked == [{"cache_dir": folder, "disable_download": True}]
