"""Which knobs are a model's to read. A model class names those that it reads in `reads`; see
`zoo/registry.py`.
"""

import dataclasses

from gr4ad_jax.config import ItemConfig, ModelConfig, ObjectiveConfig, PreferenceConfig


def _names(section: type) -> frozenset[str]:
  return frozenset(field.name for field in dataclasses.fields(section))


LISTS = _names(PreferenceConfig)  # of the list objectives
VALUE = frozenset(
  {"ecpm_bins", "lambda_ecpm", "order", "value_power", "ecpm_beams"}
)  # of an eCPM head
WEIGHTS = frozenset({"value_weight", "depth_weight", "user_weight"})  # of the targets in VSL
BEAMS = frozenset({"beams", "precut", "quantize"})  # of beam search
BIAS = frozenset({"history_bias", "history_bias_ads"})  # of the signed bias in log p of a UA-SID
TABLE = frozenset({"table_optimizer", "table_learning_rate"})  # of the table of ads
HEAD = _names(ItemConfig) | TABLE  # of what scores single ads
ENCODER = frozenset({"encoder_layers", "encoder_dropout", "encoder_causal"})
BESIDE = frozenset({"lambda_item", "item_weight", "guided"})  # of an item-level head beside UA-SIDs
FEATURES = frozenset({"behavior_features"})  # of slots and users in a batch, beside their ads

# --objective is refused by what `learns_lists` says. Knobs in no set here are the run's: every
# model's run reads them. So the slots of neighbours and rising ads are, though some models read the
# history's alone: rerankers and the reward model take their ads from the slots, whatever model
# stands before them.
ALL = (
  (_names(ModelConfig) | _names(ObjectiveConfig)) - {"model", "objective"}
  | LISTS | VALUE | WEIGHTS | BEAMS | BIAS | HEAD | ENCODER | BESIDE | FEATURES | {"remat"}
)  # fmt: skip
"""Every knob that a model may leave unread."""

ABSENT = {
  "lazy_layers": 0, "feature_bins": 0, "copy": "off", "encoder_layers": 0, "lambda_ecpm": 0,
  "lambda_mtp": 0, "lambda_item": 0, "item_weight": 0, "guided": False, "value_weight": "none",
  "depth_weight": 0, "behavior_features": False,
}  # fmt: skip
"""Values that say "no such part".

They are true of a model that has none, and so allowed although it does not read them.
"""
