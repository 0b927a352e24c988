"""Knobs of what runs all the time."""

import dataclasses

from gr4ad_jax.knobs import knob


@dataclasses.dataclass(frozen=True)
class LearnConfig:
  """Learning from a stream."""

  learn_rate: float = knob(5e-4, "Learning rate on a stream.", low=0, free=True)
  learn_from: str = knob(
    "visits",
    "A group that is learned from at once: the next --batch_size visits, or those of a day.",
    choices=("visits", "day"),
    free=True,
  )
  day_steps: int = knob(2, "Steps on the visits of a day, with --learn_from=day.", low=1, free=True)
  replay_steps: int = knob(1, "Steps on old visits for each one on new visits.", low=0, free=True)
  replay_visits: int = knob(
    4096,
    "Visits of the stream that old ones are drawn from, beside the run's own: the latest.",
    low=0,
    free=True,
  )
  refit_steps: int = knob(
    0,
    "Steps on old and new visits alike by which a round learns anew, from fresh parameters and by "
    "the run's own rate; 0: it goes on from the parameters that are there.",
    low=0,
    free=True,
  )
  neighbor_visits: int = knob(
    0,
    "Visits of the stream after which co-visit neighbours are fitted again; 0: those of the run.",
    low=0,
    free=True,
  )
  list_weight: float = knob(
    0.0,
    (
      "Weight of the lists with rewards that the reward system writes, by VSL and RSPO under the "
      "unified weights, beside VSL on visits; 0: they are not read."
    ),
    low=0,
    free=True,
  )
  list_rows: int = knob(
    16, "Lists that a step on new visits learns from, once so many are there.", low=1, free=True
  )
  round_groups: int = knob(
    4,
    "Groups of visits between two checkpoints, each judged by what comes next.",
    low=1,
    free=True,
  )
  guard_bound: float = knob(
    0.02,
    (
      "A checkpoint is promoted where its recall@10 on what comes next is at most so much below "
      "that of the one in use, and of the run's start."
    ),
    low=0,
    high=1,
    free=True,
  )
