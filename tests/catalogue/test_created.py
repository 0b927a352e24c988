"""When a live ad was created: as its PUT says, else the moment of the PUT."""

import time

import numpy as np
import pytest

from gr4ad_jax.answering.contexts import ContextBuilder
from gr4ad_jax.catalogue.ad_records import AdRecord
from gr4ad_jax.config import DataConfig
from gr4ad_jax.data import visits
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.features.batches import slot_features
from gr4ad_jax.features.contexts import joined
from gr4ad_jax.features.histories import Events, Histories
from gr4ad_jax.features.neighbors import CoVisitNeighbors
from gr4ad_jax.features.trends import Trends
from tests.serving import shop
from tests.serving.shop import NEW

DAY = 86_400


def test_a_put_may_say_it_and_is_the_moment_else(tmp_path):
  catalog = shop.opened(tmp_path)
  catalog.put("told", NEW | {"created": 5 * DAY})
  before = int(time.time())
  catalog.put("untold", NEW)
  assert catalog.created_N[:6].tolist() == [-1] * 6  # of the run's table, which has no dates
  assert catalog.created_N[6] == 5 * DAY and before <= catalog.created_N[7] <= time.time()
  moment = int(catalog.created_N[7])
  catalog.put("untold", {"price": 3})  # a change is no new ad
  catalog.put("base2", {"text": "another"})
  catalog.put("told", {"created": 6 * DAY})
  catalog.delete("untold")
  catalog.close()
  catalog = shop.opened(tmp_path)  # all of it was on disk
  assert catalog.created_N.tolist() == [-1] * 6 + [6 * DAY, moment]
  assert catalog.get("told")["created"] == 6 * DAY and catalog.get("base2")["created"] is None
  catalog.close()


@pytest.mark.parametrize("created", [-1, 2**40, 1.5, True, "2024-01-01"])
def test_what_is_no_moment_is_refused(tmp_path, created):
  catalog = shop.opened(tmp_path)
  with pytest.raises(DataError, match=r"ad 'x': created .* is not allowed: unix seconds"):
    catalog.put("x", NEW | {"created": created})
  assert catalog.row("x") is None
  catalog.close()


def test_a_record_of_before_there_were_dates_is_read():
  ad = AdRecord("x", text="mug", account_id="s", created=7)
  payload = ad.encoded(3, (1, 2))
  assert AdRecord.decoded(payload)[0] == ad
  old = payload.replace(b', "created": 7', b"")
  assert old != payload and AdRecord.decoded(old)[0].created is None


def test_a_context_knows_the_age_of_a_live_ad(tmp_path):
  catalog = shop.opened(tmp_path)
  now = 1_700_000_000
  catalog.put("old", NEW | {"created": now - 100 * DAY})
  catalog.put("young", NEW | {"created": now - 2 * DAY})
  rows = [catalog.row("old"), catalog.row("young"), 0]
  config = DataConfig(history_slots=4, neighbor_slots=0, rising_slots=0, ad_age=True)
  nothing = CoVisitNeighbors(np.full((6, 1), -1, np.int32), np.zeros((6, 1), np.float32))
  builder = ContextBuilder(config, Trends.empty(6), nothing, catalog)
  histories = Histories(visits.no_events(0))
  columns = np.array(rows), np.full(3, now - DAY), np.zeros(3, int), np.zeros(3), np.ones(3)
  histories.observe(Events(["u"] * 3, *columns, ["visit"] * 3))
  batch = builder.batch(joined([histories.log_of("u")]), np.array([now]))
  column = batch.slot_features_BSF[0, :, slot_features(DataConfig(ad_age=True)).index("ad_age")]
  found = dict(zip(batch.slot_ad_BS[0].tolist(), column.tolist(), strict=True))
  assert found[rows[0]] == pytest.approx(np.log1p(100), rel=1e-6)
  assert found[rows[1]] == pytest.approx(np.log1p(2), rel=1e-6)
  assert found[0] == -1 and found[-1] == 0
  catalog.close()
