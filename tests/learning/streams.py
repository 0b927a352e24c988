"""A small run to go on from, and a stream of what comes after it."""

import dataclasses
import random
import shutil

import jax
import numpy as np

from gr4ad_jax.config import load_config, with_knobs
from gr4ad_jax.learning.learn_task import LearnTask
from gr4ad_jax.streams.opening import open_stream

START = 1_706_000_000  # after the last event of `tests.tiny`
GAP = 1800
LEARN = {"round_groups": 2, "batch_size": 8}


def visits(number=60, seed=1, users=12, ads=24, random_share=0.0):
  """Events of visits, one after the other, half an hour apart and more: `users` of whom two are
  new, each with ads that he likes.
  """
  rng = random.Random(seed)
  found = []
  for visit in range(number):
    user = rng.randrange(users)
    liked = [(3 * user + n) % ads for n in range(6)]
    is_random = rng.random() < random_share
    for ad in rng.sample(range(ads) if is_random else liked, 3):
      found.append({
        "event_id": f"{visit}-{ad}", "user_id": f"u{user}", "ad_id": f"ad{ad:02d}",
        "time": START + 2 * GAP * visit + rng.randrange(60), "behavior": "purchase",
        "value": round(5 * rng.random(), 2), "request_id": f"live-{visit}",
      })  # fmt: skip
  return found


def filled(path, events, ads=()):
  """A stream of them; `ads` are appended first."""
  stream = open_stream(f"sqlite:{path}")
  if ads:
    stream.append("ads", ads)
  if events:
    stream.append("events", events)
  return stream


def copied(run, folder):
  """A copy of a run that may be written to."""
  return shutil.copytree(run, folder)


def task_of(workdir, stream, **knobs):
  """The task of learning on."""
  config = dataclasses.replace(load_config(str(workdir)), workdir=str(workdir))
  return LearnTask.over(with_knobs(config, LEARN | knobs), stream)


def leaves(state):
  """All arrays of a state: parameters, and those of the optimiser."""
  return [np.asarray(x) for x in jax.tree.leaves((state.params, state.opt_state))]
