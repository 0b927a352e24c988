"""The JSON of reasons: why an ad is in a list, as `Reasoner.reasons` tells it.

Needs the `serve` extra.
"""

from typing import Literal

try:
  import pydantic
except ImportError as error:
  raise ImportError("pydantic is missing: pip install 'gr4ad_jax[serve]'") from error


class SlotReason(pydantic.BaseModel):
  """A slot of the context, and what an ad would lose without it."""

  ad_id: str
  text: str
  kind: Literal["history", "neighbor", "rising"]
  log_p: float = pydantic.Field(description="Of the ad's log p, nats.")
  ecpm: float = pydantic.Field(description="Of its predicted value, money.")


class CodeReason(pydantic.BaseModel):
  """A code of the UA-SID."""

  code: int
  log_p: float = pydantic.Field(description="Natural log of its probability given those before it.")
  lift: float = pydantic.Field(description="How much of it the slots make, all together.")


class ValueReason(pydantic.BaseModel):
  """The parts of the predicted value."""

  chance: float = pydantic.Field(description="Probability of the UA-SID, 0 to 1.")
  expected: float = pydantic.Field(description="Money that the ad brings if it is taken.")
  low: float = pydantic.Field(description="Money; one value in ten is below it.")
  high: float = pydantic.Field(description="Money; one value in ten is above it.")


class Reasons(pydantic.BaseModel):
  """Why an ad is in the list."""

  sentence: str
  slots: list[SlotReason] = pydantic.Field(description="Those that carry most, most first.")
  copied: float = pydantic.Field(
    description="Share of its probability that is copied from slots, 0 to 1."
  )
  codes: list[CodeReason]
  log_p_without_context: float = pydantic.Field(
    description="What its log_p would be by the user's profile alone."
  )
  value: ValueReason
