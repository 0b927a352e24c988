"""Knobs of the trainer: rates, length, mesh, seed."""

import dataclasses

from gr4ad_jax.knobs import knob


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Optimiser and loop."""

  fit_splits: str = knob(
    "train",
    (
      "What is learned from: train alone, to choose settings on valid; valid too, for a last run; "
      "or all, for a run that goes live, which no split can judge."
    ),
    choices=("train", "train+valid", "train+valid+test"),
    of="requests",
  )
  period: tuple[float, ...] = knob(
    (0.0, 1.0),
    "Begin and end, in shares of those requests in order of time, of what is learned from.",
    low=0,
    high=1,
    of="requests",
  )
  examples: str = knob(
    "requests",
    (
      "An epoch: every request; or each user's last, and those a full history before it (for "
      "--inner_targets)."
    ),
    choices=("requests", "users"),
    of="requests",
  )
  data_order: str = knob(
    "shuffled",
    (
      "Order of the requests: a new permutation each epoch; or by time, each predicted before it "
      "is learned from."
    ),
    choices=("shuffled", "time"),
    of="requests",
  )
  init_from: str = knob(
    "", "Workdir of a trained run whose parameters, UA-SIDs and features this one starts from."
  )
  epochs: float = knob(
    3.0, "Passes over the training requests; --max_steps may end them sooner.", low=1e-3, free=True
  )
  max_steps: int = knob(
    0,
    "Stop after this many steps, where a cosine of the rate ends too; 0: no limit beyond epochs.",
    low=0,
    free=True,
  )
  learning_rate: float = knob(2e-3, "Peak learning rate of AdamW.", low=0)
  warmup_steps: int = knob(50, "Linear warm-up, steps.", low=0)
  schedule: str = knob(
    "cosine",
    "Learning rate after it: a cosine to 0 at the run's end; or endless, constant or 1/√step.",
    choices=("cosine", "constant", "inverse_sqrt"),
  )
  weight_decay: float = knob(0.01, "AdamW's decoupled decay, matrices only.", low=0)
  table_optimizer: str = knob(
    "adamw",
    (
      "Optimiser of the table of ads: that of all else; or row-wise Adagrad, one number a row and "
      "no decay."
    ),
    choices=("adamw", "adagrad"),
    of="requests",
  )
  table_learning_rate: float = knob(
    0.02, "Peak learning rate of --table_optimizer=adagrad.", low=0, of="requests"
  )
  clip_norm: float = knob(1.0, "Global gradient norm limit; 0: none.", low=0)
  accumulate: int = knob(
    1, "Micro-batches a step; each normalises its loss by its own targets.", low=1
  )
  mesh: str = knob(
    "data:-1",
    "Devices by axis: data, fsdp (parameters too), tensor; as data:-1,fsdp:4. -1: the rest.",
    free=True,
  )
  remat: str = knob(
    "none",
    "What is kept for the backward pass of a model's blocks, context and heads: everything; the "
    "products of weights, logits aside (dots); or their inputs alone (full). The rest is computed "
    "again: less memory, more time.",
    choices=("none", "dots", "full"),
    free=True,
  )
  batch_size: int = knob(64, "Examples a step, over all devices (B): requests, say.", low=1)
  seed: int = knob(0, "Seed of initialisation, order and dropout.", low=0, high=2**31 - 1)
  log_every: int = knob(20, "Steps between metric lines.", low=1, free=True)
  eval_every: int = knob(
    200,
    "Steps between valid evaluations, unless valid is learned from; 0: at the end.",
    low=0,
    free=True,
  )
  eval_requests: int = knob(
    512, "Valid requests of a periodic evaluation.", low=1, free=True, of="requests"
  )
  save_every: int = knob(200, "Steps between checkpoints.", low=1, free=True)
  loader_threads: int = knob(
    0,
    (
      "Threads that make batches ready; 0: one on CPU, where cores are the devices, else one a "
      "core, 8 at most."
    ),
    low=0,
    free=True,
  )
  loader_processes: int = knob(
    0,
    "Processes that read examples (--examples_path) and make batches of them; 0: threads do.",
    low=0,
    free=True,
    of="requests",
  )
  profile_steps: str = knob(
    "",
    (
      "As 10:15: a profiler trace in <workdir>/profile from where 10 steps are done to where 15 "
      "are; empty: none."
    ),
    free=True,
  )
  peak_tflops: float = knob(
    0.0,
    (
      "Dense bfloat16 peak of a device, TFLOP/s, that utilisation is a share of; 0: as its name "
      "tells."
    ),
    low=0,
    free=True,
  )

  @property
  def profiled(self) -> tuple[int, int]:
    """Steps done at the begin and at the end of the trace; (0, 0): none. Raises ValueError where
    they are not a:b.
    """
    first, last = map(int, self.profile_steps.split(":")) if self.profile_steps else (0, 0)
    if self.profile_steps and not 0 <= first < last:
      raise ValueError(f"{self.profile_steps!r} is no window of steps")
    return first, last

  @property
  def fitted(self) -> tuple[str, ...]:
    """The splits that are learned from, in order of time."""
    return tuple(self.fit_splits.split("+"))
