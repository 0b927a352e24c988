"""The names of a run's features are kept with it and compared."""

import pytest

from gr4ad_jax.config import ConfigError, DataConfig
from gr4ad_jax.features import feature_names, pair_features
from gr4ad_jax.files import DamagedError


def test_features_are_those_of_the_run(tmp_path):
  feature_names.save(str(tmp_path), DataConfig())
  feature_names.check(str(tmp_path), DataConfig())


def changed_names(monkeypatch, change):
  columns = list(pair_features.FEATURES)
  change(columns)
  monkeypatch.setattr(pair_features, "FEATURES", tuple(columns))


def test_two_columns_of_one_width_may_not_change_places(tmp_path, monkeypatch):
  feature_names.save(str(tmp_path), DataConfig())

  def swap(columns):
    columns[1], columns[2] = columns[2], columns[1]

  changed_names(monkeypatch, swap)
  with pytest.raises(
    ConfigError, match="feature 2 of pairs is 'count' in the run and 'decayed_cou"
  ):
    feature_names.check(str(tmp_path), DataConfig())


def test_a_missing_or_new_feature_is_refused_by_name(tmp_path, monkeypatch):
  feature_names.save(str(tmp_path), DataConfig())
  changed_names(monkeypatch, lambda columns: columns.remove("count"))
  with pytest.raises(ConfigError, match="feature 'count' of pairs is not known"):
    feature_names.check(str(tmp_path), DataConfig())
  changed_names(monkeypatch, lambda columns: columns.extend(["count", "shoe_size"]))
  with pytest.raises(ConfigError, match="feature 'shoe_size' of pairs is missing"):
    feature_names.check(str(tmp_path), DataConfig())


def test_a_run_of_before_names_is_read_with_a_warning(tmp_path, caplog):
  feature_names.check(str(tmp_path), DataConfig())
  assert "names.json is missing" in caplog.text


def test_damaged_names_are_told(tmp_path):
  feature_names.save(str(tmp_path), DataConfig())
  path = tmp_path / "names.json"
  path.write_text(path.read_text().replace("count", "cuont"))
  with pytest.raises(DamagedError, match=r"names.json"):
    feature_names.check(str(tmp_path), DataConfig())
