"""A reason as a sentence: facts of the log, and what the model made of them."""

import dataclasses
import math

import pytest

from gr4ad_jax.reasons.words import Known, sentence

DAY = 86_400
BOUGHT = Known(
  times=3, behavior="purchase", ago=12.5 * DAY, near=("“Cup”", "“Saucer”"), rises=False,
  copied=0.914, strongest="“Pot”", is_itself=True, carried=math.log(120.0),
)  # fmt: skip
NEW = dataclasses.replace(
  BOUGHT, times=0, behavior="", ago=None, near=(), copied=0.001, is_itself=False,
  carried=math.log(1.25),
)  # fmt: skip


@pytest.mark.parametrize(
  ("known", "words"),
  [
    (
      BOUGHT,
      "Bought 3 times, last 12 days ago; often taken with “Cup” and “Saucer”. 91% of its "
      "probability is copied from the context; without the ad's own place there it would be "
      "120 times less likely.",
    ),
    (
      NEW,
      "New to the user. All of its probability is generated, none copied; without “Pot” it would "
      "be 20% less likely.",
    ),
    (
      dataclasses.replace(NEW, carried=0.04, rises=True),
      "New to the user; taken more and more by everyone. All of its probability is generated, none "
      "copied; no single ad of the context matters much.",
    ),
    (
      dataclasses.replace(NEW, times=1, behavior="click", ago=DAY - 1.0, carried=math.log(2.5)),
      "Clicked once, last today. All of its probability is generated, none copied; without “Pot” "
      "it would be 2.5 times less likely.",
    ),
    (
      dataclasses.replace(NEW, times=1, behavior="odd", ago=1.0 * DAY, carried=90.0),
      "Taken once, last 1 day ago. All of its probability is generated, none copied; without "
      "“Pot” it would be a million times or more less likely.",
    ),
    (
      dataclasses.replace(NEW, strongest="", carried=0.0),
      "New to the user. All of its probability is generated, none copied; no single ad of the "
      "context matters much.",
    ),
  ],
)
def test_the_sentence_says_what_is_known(known, words):
  assert sentence(known) == words
