"""Which knobs (settings of `config`) are a model's to read.

A model class names those that it reads in `reads`. The registry refuses a change of one that a
model does not read (`zoo/registry.validate`), because nothing would come of it.
"""

import dataclasses

from gr4ad_jax.config import ItemConfig, ModelConfig, ObjectiveConfig, PreferenceConfig


def _names(section: type) -> frozenset[str]:
  return frozenset(field.name for field in dataclasses.fields(section))


LISTS = _names(PreferenceConfig)  # of the list objectives
# Of an eCPM head.
VALUE = frozenset({"ecpm_bins", "lambda_ecpm", "order", "value_power", "ecpm_beams"})
WEIGHTS = frozenset({"value_weight", "depth_weight", "user_weight"})  # of the targets in VSL
BEAMS = frozenset({"beams", "precut", "quantize"})  # of beam search
BIAS = frozenset({"history_bias", "history_bias_ads"})  # of the signed bias in log p of a UA-SID
TABLE = frozenset({"table_optimizer", "table_learning_rate"})  # of the table of ads
HEAD = _names(ItemConfig) | TABLE  # of what scores single ads
ENCODER = frozenset({"encoder_layers", "encoder_dropout", "encoder_causal"})
BESIDE = frozenset({"lambda_item", "item_weight", "guided"})  # of an item-level head beside UA-SIDs
FEATURES = frozenset({"behavior_features"})  # of slots and users in a batch, beside their ads

# --objective is not among them: what a model says in `learns_lists` decides about it.
#
# Knobs in no set here are the run's, and every model's run reads them. The slots of neighbours and
# of rising ads are such knobs, though some models read the history's slots alone: rerankers and the
# reward model take their ads from the slots, whatever model stands before them.
ALL = (
  (_names(ModelConfig) | _names(ObjectiveConfig)) - {"model", "objective"}
  | LISTS | VALUE | WEIGHTS | BEAMS | BIAS | HEAD | ENCODER | BESIDE | FEATURES | {"remat"}
)  # fmt: skip
"""Every knob that a model may leave unread."""

ABSENT = {
  "lazy_layers": 0, "feature_bins": 0, "copy": "off", "encoder_layers": 0, "lambda_ecpm": 0,
  "lambda_mtp": 0, "lambda_item": 0, "item_weight": 0, "guided": False, "value_weight": "none",
  "depth_weight": 0, "behavior_features": False, "feature_dropout": 0,
}  # fmt: skip
"""Values that say "no such part", by knob.

They are true of a model that lacks the part, and so are allowed although it does not read them.
"""
