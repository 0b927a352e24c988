"""Records of the topic `lists`, and ads that they are of."""

import numpy as np

CODEBOOKS = (2, 2, 8)


class Ads:
  """a0, a1, … with UA-SIDs (0, 0, n)."""

  def __init__(self, number):
    self.codes_NT = np.array([[0, 0, n] for n in range(number)], np.int32)

  def row(self, ad_id):
    row = int(ad_id[1:])
    return row if row < len(self.codes_NT) else None


def record(user="u", began=100, ads=("a0", "a1"), **more):
  """A list whose dearest ad stands first; no search proposed the last one."""
  entries = [
    {"ad": ad, "codes": [0, 0, int(ad[1:])], "reward": float(len(ads) - place), "log_p": -1.5,
     "taken": not place}
    for place, ad in enumerate(ads)
  ]  # fmt: skip
  entries[-1]["log_p"] = None
  return {"request": "r", "user": user, "began": began, "list": entries} | more
