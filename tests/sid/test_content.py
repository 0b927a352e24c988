"""Templates and encoders: what text an ad becomes, whose vectors are used, and what is refused."""

import os
import pickle
import sys
import types

import numpy as np
import pytest

from gr4ad_jax.data import schema
from gr4ad_jax.sid import encoders, templates


def test_plain_text_is_left_as_it_is(make):
  make_ads, _ = make
  ads = make_ads(2, category=np.array(["", "kitchen"]))
  assert templates.verbalise(ads) == ["red mug", "blue mug. kitchen"]


def test_each_form_has_a_template_and_unknown_fields_leave_no_gap(make):
  make_ads, _ = make
  assert len(templates.TEMPLATES) == 6
  forms = np.array(list(templates.TEMPLATES))
  bare = make_ads(6, form=forms, account_id=np.full(6, ""), price=np.full(6, np.nan, np.float32))
  for text in templates.verbalise(bare):
    assert (
      text
      and "nan" not in text
      and "{" not in text
      and ". ." not in text
      and not text.endswith((" ", "."))
    )
  full = templates.verbalise(make_ads(6, form=forms, category=np.full(6, "tea")))
  assert all("tea" in text for text in full) and len(set(full)) == 6
  assert full[list(forms).index("product")].endswith(
    "price 12.40"
  )  # the fourth of six prices from 1 to 20


def test_table_can_be_extended(make):
  make_ads, _ = make
  ads = make_ads(1, form=np.array(["podcast"]))
  assert templates.verbalise(ads, templates.TEMPLATES | {"podcast": ("Podcast", "{text}")}) == [
    "Podcast. red mug"
  ]
  with pytest.raises(
    schema.DataError, match=r"row 1 \(ad ad0\): 'podcast' is not in .*short_video"
  ):
    templates.verbalise(ads)
  with pytest.raises(schema.DataError, match="unknown field sponsor"):
    templates.verbalise(ads, {"podcast": ("{sponsor}",)})


def test_wordllama_gives_unit_vectors_of_meaning(make):
  pytest.importorskip("wordllama")
  make_ads, _ = make
  z = encoders.encode(
    make_ads(4, text=np.array(["red cup", "crimson mug", "garden spade", ""])), "wordllama"
  )
  assert z.dtype == np.float32 and z.shape == (4, 256)
  np.testing.assert_allclose(np.linalg.norm(z, axis=1), [1, 1, 1, 0], atol=1e-5)
  assert z[0] @ z[1] > z[0] @ z[2]


def test_models_are_loaded_once(make, tmp_path, monkeypatch):
  loaded = []

  def load(folder, **_):
    loaded.append(folder)
    return types.SimpleNamespace(encode=lambda texts, **_: np.ones((len(texts), 3)))

  monkeypatch.setitem(
    sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=load)
  )
  for _ in range(3):
    assert encoders.encode(make[0](2), str(tmp_path)).shape == (2, 3)
  assert loaded == [str(tmp_path)]


def test_an_ad_without_a_word_has_no_vector(make, tmp_path, monkeypatch):
  """A sentence encoder gives the empty text a vector, too: ads without one would be alike."""
  monkeypatch.setattr(encoders.sentence_encoder, "is_model", lambda folder: True)
  table = {"cup": [3.0, 4.0], "": [1.0, 0.0], " ": [1.0, 0.0]}
  bert = lambda folder: lambda texts: np.array([table[text] for text in texts], np.float32)  # noqa: E731
  monkeypatch.setattr(encoders, "_bert", bert)
  found = encoders._model_folder(["cup", "", " "], str(tmp_path))
  np.testing.assert_array_equal(found, [[3, 4], [0, 0], [0, 0]])


def test_vectors_of_the_table_come_first(make, tmp_path):
  make_ads, _ = make
  ads = make_ads(3, vectors=2 * np.eye(3, dtype=np.float32))
  np.testing.assert_array_equal(encoders.encode(ads, str(tmp_path / "absent.npy")), np.eye(3))


def test_numpy_file_in_table_order_and_its_errors(make, tmp_path):
  make_ads, _ = make
  path = str(tmp_path / "v.npy")
  np.save(path, 3 * np.eye(4))
  np.testing.assert_array_equal(encoders.encode(make_ads(4), path), np.eye(4))
  with pytest.raises(schema.DataError, match=r"v.npy: vectors have shape \(4, 4\); \[5, D\]"):
    encoders.encode(make_ads(5), path)
  np.save(path, np.array([[1, 2], [np.inf, 0]]))
  with pytest.raises(schema.DataError, match=r"row 2 \(ad ad1\): the vector is not finite"):
    encoders.encode(make_ads(2), path)
  np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
  with pytest.raises(schema.DataError, match="not a plain .npy"):
    encoders.encode(make_ads(1), path)


class Payload:
  """What runs code when it is unpickled: here, it leaves a folder."""

  def __init__(self, folder):
    self.folder = folder

  def __reduce__(self):
    return os.mkdir, (self.folder,)


def test_a_pickle_that_is_named_npy_is_not_run(make, tmp_path):
  make_ads, _ = make
  (tmp_path / "v.npy").write_bytes(pickle.dumps(Payload(str(tmp_path / "ran"))))
  with pytest.raises(schema.DataError, match="not a plain .npy"):
    encoders.encode(make_ads(1), str(tmp_path / "v.npy"))
  assert not (tmp_path / "ran").exists()


def test_parquet_file_is_matched_by_ad(make, tmp_path):
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  make_ads, _ = make
  path = str(tmp_path / "v.parquet")
  pq.write_table(
    pa.table({"ad_id": ["ad1", "x", "ad0"], "vector": [[0.0, 2.0], [1.0, 1.0], [5.0, 0.0]]}), path
  )
  np.testing.assert_array_equal(encoders.encode(make_ads(2), path), np.eye(2))
  with pytest.raises(schema.DataError, match="no vector for ad ad2"):
    encoders.encode(make_ads(3), path)
  pq.write_table(pa.table({"ad_id": ["ad0", "ad1"], "vector": [[0.0, 2.0], [1.0]]}), path)
  with pytest.raises(schema.DataError, match="column vector, row 2"):
    encoders.encode(make_ads(2), path)
  pq.write_table(pa.table({"ad_id": ["ad0"]}), path)
  with pytest.raises(schema.DataError, match="no column 'vector'"):
    encoders.encode(make_ads(1), path)


def test_unknown_encoder_is_refused(make, tmp_path):
  make_ads, _ = make
  with pytest.raises(FileNotFoundError, match="wordlama"):
    encoders.encode(make_ads(2), "wordlama")
  (tmp_path / "v.csv").write_text("1,2")
  with pytest.raises(schema.DataError, match="npy or .parquet"):
    encoders.encode(make_ads(2), str(tmp_path / "v.csv"))
