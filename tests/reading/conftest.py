"""A CSV pair, and the config that reads it."""

import pytest

from gr4ad_jax.config import DataConfig

ADS = "ad_id,text,account_id,price,created\n0012,a  red\tmug ,acme,3.5,2024-01-01\n13,,zoo,,\n"
EVENTS = (
  "user_id,ad_id,time,behavior,value,quantity\n"
  "u1,0012,2024-01-02T00:00:00Z,click,,\n"
  "u1,13,1704153660.9,purchase,2.5,3\n"
  "u2,0012,2024-01-02 02:00:00+01:00,cart,0,1\n"
)


@pytest.fixture
def config(tmp_path):
  (tmp_path / "ads.csv").write_text(ADS)
  (tmp_path / "events.csv").write_text(EVENTS)
  return DataConfig(
    dataset="ad_log",
    data_dir=str(tmp_path / "prepared"),
    ads_path=str(tmp_path / "ads.csv"),
    events_path=str(tmp_path / "events.csv"),
  )
