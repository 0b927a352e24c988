"""The power law, what counts as rising, and the table."""

import numpy as np
import pytest

from gr4ad_jax.evaluation import scaling_table


def found():
  sizes = [
    {"width": w, "parameters": n, "train_loss": 5 * n**-0.1, "recall@10": r, "revenue@10": r / 2}
    for w, n, r in ((8, 1000, 0.1), (16, 4000, 0.2), (32, 9000, 0.25))
  ]
  beams = [{"beams": b, "recall@10": r, "revenue@10": 0.1} for b, r in ((32, 0.2), (64, 0.19))]
  law = scaling_table.power_law([one["parameters"] for one in sizes], [one["train_loss"] for one in sizes])
  return {"dataset": "shop", "seeds": [0], "sizes": sizes, "beams": beams, "law": law}


def test_power_law_is_recovered():
  law = found()["law"]
  assert law["exponent"] == pytest.approx(0.1) and law["scale"] == pytest.approx(5) and law["r2"] == pytest.approx(1)
  noisy = scaling_table.power_law([10, 100, 1000], [3.0, 2.5, 2.6])
  assert 0 < noisy["r2"] < 1


def test_rising_is_told_by_measure():
  rising = scaling_table.rising(found())
  assert rising["sizes"] == {"recall@10": True, "revenue@10": True, "train_loss": True}
  assert rising["beams"] == {"recall@10": False, "revenue@10": True}


def test_table_and_chart(tmp_path):
  text = scaling_table.format_markdown(found())
  assert "| 32    | 9,000" in text and "parameters^-0.1" in text and "| 64    | 0.1900" in text
  scaling_table.plot(found(), str(tmp_path / "scaling.png"))
  assert (tmp_path / "scaling.png").stat().st_size > 5000 and np.isfinite(found()["law"]["r2"])
