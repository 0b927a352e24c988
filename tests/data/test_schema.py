"""The tables and what is told of reading them."""

import dataclasses
import importlib
import pkgutil

import pytest

from gr4ad_jax import data
from gr4ad_jax.data.schema import SPLITS, Report

MODULES = [name for _, name, package in pkgutil.iter_modules(data.__path__) if not package]


@pytest.mark.parametrize("module", MODULES)
def test_what_several_parts_share_cannot_be_changed(module):
  made = vars(importlib.import_module(f"gr4ad_jax.data.{module}")).values()
  kinds = [kind for kind in made if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
  assert all(kind.__dataclass_params__.frozen for kind in kinds)


def test_a_report_in_words():
  events = {"train": 9, "valid": 4, "test": 2}
  requests = {"train": 6, "valid": 3, "test": 1}
  report = Report(ads=5, users=3, events=events, requests=requests, rows=20)
  words = ("5 ads, 3 users, 9 events in 6 requests of train, 4 events in 3 requests of valid, "
           "2 events in 1 requests of test, 20 rows read")  # fmt: skip
  assert SPLITS == ("train", "valid", "test") and str(report) == words
  assert (report.merged, report.dropped) == (0, {})
  more = dataclasses.replace(report, merged=1, dropped={"no ad": 7, "no time": 2})
  assert str(more) == words + ", 1 merged, 7 dropped (no ad), 2 dropped (no time)"
