"""Servers on one stream come to have the same ads, whoever changes what and reads when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr4ad_jax.catalogue.following import AdFollower
from gr4ad_jax.streams.opening import open_stream
from tests.serving import shop

IDS = ("base0", "base1", "x", "y")
FIELDS = st.fixed_dictionaries(
  {"text": st.sampled_from(["mug", "rug"]), "account_id": st.just("s")},
  optional={
    "price": st.none() | st.integers(0, 3),
    "status": st.sampled_from(["active", "paused"]),
  },
)
STEP = st.tuples(
  st.integers(0, 1), st.sampled_from(IDS), st.just("delete") | FIELDS | st.just("read")
)


class Place:
  """A server's catalogue on a stream."""

  def __init__(self, folder, stream, name):
    self.catalog = shop.opened(folder / name)
    self.follower = AdFollower(stream, self.catalog, name)

  def change(self, ad_id, fields):
    """Changes an ad as a server does. Returns whether there was anything to change."""
    if fields == "delete":
      if not self.catalog.delete(ad_id):
        return False  # perhaps another server's, of which nothing is known here yet
    else:
      self.catalog.put(ad_id, fields)
    self.follower.tell(ad_id)
    return True

  def ads(self):
    found = {ad_id: self.catalog.get(ad_id) for ad_id in IDS}
    active = {ad_id: self.catalog.is_active(self.catalog.row(ad_id)) for ad_id in IDS
              if self.catalog.row(ad_id) is not None}  # fmt: skip
    return found, {ad_id for ad_id, there in active.items() if there}


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(STEP, max_size=12))
def test_two_servers_end_with_the_same_ads(tmp_path_factory, steps):
  folder = tmp_path_factory.mktemp("two")
  stream = open_stream(f"sqlite:{folder}/s.sqlite")
  stream._writer.execute("PRAGMA synchronous=OFF")  # for speed
  places = [Place(folder, stream, name) for name in ("a", "b")]
  told = {}
  for number, ad_id, what in steps:
    if what == "read":
      places[number].follower.catch_up()
    elif places[number].change(ad_id, what):
      told[ad_id] = what
  for place in places:
    place.follower.catch_up()
  one, other = (place.ads() for place in places)
  assert one == other
  for ad_id, last in told.items():  # the last change of each ad is how it is
    found = one[0][ad_id]
    assert found is None if last == "delete" else found["text"] == last["text"]
  assert not any(place.follower.refused for place in places)
  for place in places:
    place.catalog.close()
  stream.close()


def test_a_new_server_has_the_ads_and_goes_on_where_it_was(tmp_path):
  stream = open_stream(f"sqlite:{tmp_path}/s.sqlite")
  first = Place(tmp_path, stream, "a")
  first.change("x", {"text": "mug", "account_id": "s", "vector": [1.5, 2.0], "price": 2.5})
  first.change("base0", "delete")
  second = Place(tmp_path, stream, "b")
  second.follower.catch_up()
  assert second.ads() == first.ads()
  row = second.catalog.row("x")
  assert second.catalog.ad(row).vector == first.catalog.ad(first.catalog.row("x")).vector
  assert second.catalog._tokenizer.calls == 0  # the UA-SID comes with the ad
  assert stream.position("ads", "catalogue b") == 2
  again = AdFollower(stream, second.catalog, "b")
  again._make = None  # nothing is made twice
  again.catch_up()
  for place in (first, second):
    place.catalog.close()
  stream.close()


def test_the_thread_follows_and_a_bad_change_is_counted(tmp_path, caplog):
  stream = open_stream(f"sqlite:{tmp_path}/s.sqlite")
  place = Place(tmp_path, stream, "a")
  place.follower.start()
  bad = {"ad_id": "y", "server": "b", "text": "no account", "status": "active", "codes": [0, 0, 0]}
  stream.append("ads", [bad, bad | {"ad_id": "x", "account_id": "s"}])
  for _ in range(600):
    if stream.position("ads", "catalogue a") == 2:
      break
    stream.wait("ads", 9, 0.05)
  place.follower.close()
  assert place.catalog.get("x")["account_id"] == "s" and place.catalog.get("y") is None
  assert place.follower.refused == 1 and "account_id is missing" in caplog.text
  place.catalog.close()
  stream.close()
  with pytest.raises(OSError, match="closed"):
    place.follower.catch_up()
