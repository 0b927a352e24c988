"""The table of a sweep: best first, what differs between sweeps named, values to the digit."""

from gr4ad_jax.studies import sweep_table


def one(setting, recall, revenue, entropy, **common):
  valid = {"recall@10": recall, "ndcg@10": recall / 2, "recall@50": 2 * recall, "other": 9}
  valued = {"recall@10": recall / 4}
  if revenue is not None:
    valid |= {"revenue@10": revenue, "revenue@50": 2 * revenue}
    valued["revenue@10"] = revenue / 4
  return {
    "setting": setting,
    "valid": valid,
    "by_value": valued,
    "entropy": entropy,
    "common": common,
  }


def cells(text):
  return [
    [cell.strip(" -") for cell in line.split("|")[1:-1]]
    for line in text.splitlines()
    if line.startswith("|")
  ]


def test_settings_stand_by_revenue_with_what_differs_between_sweeps():
  found = [
    one({"weight": 1.0}, 0.4, 0.1, 2.125, lr=0.1, seed=0),
    one(None, 0.2, 0.3, 1.5, lr=0.1, seed=0),
    one({"weight": 2.0, "beta": 3}, 0.1, 0.2, 1.0, lr=0.2, seed=0, more=[1]),
    one({}, 0.5, 0.05, 1.0, lr=0.2, seed=0),
  ]
  text = sweep_table.format_markdown(found)
  assert text.startswith("Valid, 4 settings.\n\n|")
  assert text.endswith(
    "|\n\nBy value: log p + 0.3 log E[value]. Entropy: of the 128 best ads, nats.\n"
  )
  assert cells(text) == [
    [
      "setting",
      "recall@10",
      "ndcg@10",
      "revenue@10",
      "recall@50",
      "revenue@50",
      "recall@10, by value",
      "revenue@10, by value",
      "entropy",
    ],
    [""] * 9,
    ["the start", "0.2000", "0.1000", "0.3000", "0.4000", "0.6000", "0.0500", "0.0750", "1.50"],
    [
      "lr=0.2, more=[1], weight=2.0, beta=3",
      "0.1000",
      "0.0500",
      "0.2000",
      "0.2000",
      "0.4000",
      "0.0250",
      "0.0500",
      "1.00",
    ],
    [
      "lr=0.1, more=None, weight=1.0",
      "0.4000",
      "0.2000",
      "0.1000",
      "0.8000",
      "0.2000",
      "0.1000",
      "0.0250",
      "2.12",
    ],
    [
      "lr=0.2, more=None",
      "0.5000",
      "0.2500",
      "0.0500",
      "1.0000",
      "0.1000",
      "0.1250",
      "0.0125",
      "1.00",
    ],
  ]


def test_without_values_settings_stand_by_recall():
  found = [one({"weight": 1}, 0.25, None, 2), one({"weight": 2}, 0.5, None, 3)]
  assert cells(sweep_table.format_markdown(found)) == [
    ["setting", "recall@10", "ndcg@10", "recall@50", "recall@10, by value", "entropy"],
    [""] * 6,
    ["weight=2", "0.5000", "0.2500", "1.0000", "0.1250", "3.00"],
    ["weight=1", "0.2500", "0.1250", "0.5000", "0.0625", "2.00"],
  ]


def test_a_setting_in_words():
  assert sweep_table.in_words(None) == sweep_table.in_words(None, {"lr": 1}) == "the start"
  assert sweep_table.in_words({}) == sweep_table.in_words({}, {}) == "as the flags say"
  assert sweep_table.in_words({"a": 1}, {"a": 2, "b": 3}) == "a=1, b=3"
