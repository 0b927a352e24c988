"""A run on Complete Journey's layout with displays and mailers, from tables to lists."""

import datetime
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr4ad_jax.config import DataConfig
from gr4ad_jax.features import batches
from tests import tiny

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compile_cache")]
_DAY0 = datetime.datetime(2017, 1, 1, 12)


def _write(folder) -> None:
  """Ten households, two dozen products, five baskets each; something is shown everywhere."""
  rng = random.Random(0)
  lines = [
    {
      "household_id": household,
      "store_id": 300 + household % 2,
      "basket_id": 100 * household + basket,
      "product_id": 1000 + product,
      "quantity": 1,
      "sales_value": 1.0 + product / 4,
      "week": 1 + 3 * basket // 7,
      "transaction_timestamp": _DAY0 + datetime.timedelta(days=3 * basket, hours=household),
    }
    for household in range(1, 11)
    for basket in range(5)
    for product in rng.sample(range(24), 8)
  ]
  products = [
    {
      "product_id": 1000 + number,
      "manufacturer_id": number % 4,
      "department": "GROCERY",
      "brand": "National",
      "product_category": " ".join(rng.sample(tiny.WORDS, 2)),
      "product_type": rng.choice(tiny.WORDS),
      "package_size": "22 LB",
    }
    for number in range(24)
  ]
  shown = [
    {
      "product_id": 1000 + number,
      "store_id": store,
      "week": week,
      "display_location": rng.choice("0379"),
      "mailer_location": rng.choice("0AD"),
    }
    for number in range(24)
    for store in (300, 301)
    for week in (1, 2)
  ]
  coupons = [{"coupon_upc": 5, "campaign_id": 1, "product_id": 1000}]
  used = [{"household_id": 1, "coupon_upc": 5, "campaign_id": 1, "redemption_date": _DAY0}]
  for name, rows in (
    ("transactions", lines), ("products", products), ("promotions", shown), ("coupons", coupons),
    ("coupon_redemptions", used),
  ):  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def test_displays_and_mailers_reach_the_lists(tmp_path):
  _write(tmp_path)
  source = (
    "--dataset=complete_journey", "--promotions", f"--journey_path={tmp_path}",
    f"--data_dir={tmp_path}/data",
  )  # fmt: skip
  once = ("--max_steps=4", "--layers=1", "--lazy_layers=0")
  done = tiny.run("train", *source, *tiny.SETTINGS, *once, f"--workdir={tmp_path}/run")
  assert (done.status, done.err) == (0, "")
  names = json.loads((tmp_path / "run" / "features" / "names.json").read_text())
  assert names["slots"] == list(batches.slot_features(DataConfig(promotions=True)))
  found = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())
  assert {"personal_frequency", "gr4ad"} <= found["systems"].keys()
  asked = ("recommend", f"--workdir={tmp_path}/run", "--user=3", "--k=5", "--json")
  scores = [ad["score"] for ad in json.loads(tiny.run(*asked).out)["ads"]]
  lists = tiny.run(
    "batch_recommend", f"--workdir={tmp_path}/run", f"--out={tmp_path}/lists", "--k=5"
  )
  assert (lists.status, lists.err) == (0, "")
  table = pq.read_table(tmp_path / "lists").to_pydict()
  own = [at for at, user in enumerate(table["user_id"]) if user == "3"]
  assert [table["score"][at] for at in own] == pytest.approx(scores, abs=1e-5)
  # Beside a run that knows nothing of them, each with the features that it has learned from.
  others = [flag for flag in source if flag != "--promotions"]
  plain = (*others, *tiny.SETTINGS, *once, "--noevaluate", f"--workdir={tmp_path}/plain")
  assert tiny.run("train", *plain).status == 0
  for run, beside in (("run", "plain"), ("plain", "run")):
    done = tiny.run("evaluate", f"--workdir={tmp_path}/{run}", f"--beside={tmp_path}/{beside}")
    assert (done.status, done.err) == (0, "")
    found = json.loads((tmp_path / run / "eval" / "metrics.json").read_text())
    assert {"gr4ad", beside} <= found["systems"].keys()
  refused = tiny.run("recommend", f"--workdir={tmp_path}/run", "--user=3", "--nopromotions")
  assert refused.status == 2 and "--promotions=False is not allowed" in refused.err
