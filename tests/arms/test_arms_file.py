"""The file of arms: what it says, whom it puts where, and what it refuses."""

import json

import pytest

from gr4ad_jax.arms import arms_file
from gr4ad_jax.arms.assignment import arm_of
from gr4ad_jax.config import Config, ConfigError

GOOD = {
  "salt": "spring",
  "arms": {
    "frozen": {"share": 0.5, "checkpoint": 812},
    "learning": {"share": 0.3, "checkpoint": "promoted"},
    "wide": {"share": 0.2, "workdir": "other", "settings": {"beams": [9, 9, 9], "explore": True}},
  },
}


def _load(tmp_path, content):
  path = tmp_path / "arms.json"
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return arms_file.load(str(path))


def test_arms_and_their_users(tmp_path):
  arms = _load(tmp_path, GOOD)
  assert arms.shares == {"frozen": 0.5, "learning": 0.3, "wide": 0.2}
  assert [arm.checkpoint for arm in arms.arms.values()] == [812, "promoted", "best"]
  assert arms.arms["wide"].workdir == f"{tmp_path}/other"
  users = [f"u{n}" for n in range(50)]
  assert {arms.of(user) for user in users} == set(arms.shares)
  assert all(arms.of(user) == arm_of(user, arms.shares, "spring") for user in users)
  assert arms.of(None) == "frozen"


def test_settings_are_an_arms_own(tmp_path):
  arm = arms_file.Arm(1.0, "", "best", {"beams": (9, 9, 9)})
  made = arms_file.config_of(arm, Config(workdir=str(tmp_path)))
  assert made.search.beams == (9, 9, 9) and made.workdir == str(tmp_path)
  assert Config().search.beams != (9, 9, 9)


def _changed(**more):
  return GOOD | {"arms": GOOD["arms"] | {"frozen": {"share": 0.5} | more}}


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("{", "is not JSON"),
    ([], "is not allowed: an object with arms, salt"),
    ({"arms": {}}, "an object of 1 to 16 arms"),
    (GOOD | {"slat": 1}, "'slat' is not known"),
    (GOOD | {"salt": 1}, "salt 1 is not allowed: text"),
    (_changed(share=0.4), "shares sum to 0.9"),
    (_changed(share="half"), "arm frozen: share 'half' is not allowed: a number"),
    (_changed(checkpoint="newest"), "arm frozen: checkpoint 'newest' is not allowed"),
    (_changed(checkpoint=-1), "arm frozen: checkpoint -1 is not allowed"),
    (_changed(settings={"width": 3}), "arm frozen: setting 'width' is no knob of search or server"),
    (_changed(workdir=3), "arm frozen: workdir is a path"),
  ],
)  # fmt: skip
def test_refusals(tmp_path, content, words):
  with pytest.raises(ConfigError, match=words):
    _load(tmp_path, content)
