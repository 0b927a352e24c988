"""An ad's record as a table of one row."""

from gr4ad_jax.catalogue.ad_records import AdRecord


def test_a_long_text_is_held_once_not_at_four_bytes_a_character():
  text = "word " * 3_999 + "word"
  ads = AdRecord.made("a1", {"text": text, "account_id": "shop", "price": 2.5}).table()
  assert (
    ads.text.tolist() == [text]
    and ads.ad_id.tolist() == ["a1"]
    and ads.account_id.tolist() == ["shop"]
  )
  assert (
    sum(getattr(ads, name).nbytes for name in ("ad_id", "text", "account_id", "category", "form"))
    < 100
  )
  assert (ads.category.tolist(), ads.conversion_type.tolist(), ads.form.tolist()) == (
    [""],
    [""],
    [""],
  )
