"""The ad forms, and the text template of each: what the `form` column may hold, and what
`sid/templates` writes.

A template is a tuple of format strings over `FIELDS`. Another form is one more entry here, at any
time before data are
read: `TEMPLATES["podcast"] = ("{text}", "on {category}")`.
"""

TEMPLATES: dict[str, tuple[str, ...]] = {
  "live_stream": ("Live stream by {account_id}", "{text}", "about {category}"),
  "off_site": (
    "{text}",
    "industry {category}",
    "advertiser {account_id}",
    "goal {conversion_type}",
  ),
  "virtual_product": ("Virtual product", "{text}", "genre {category}", "value {price:.2f}"),
  "product": ("{text}", "product of {category}", "price {price:.2f}"),
  "short_video": ("Short video", "{text}", "topic {category}", "creator {account_id}"),
  "local_service": ("Local service", "{text}", "trade {category}", "from {price:.2f}"),
}
DEFAULT = ("{text}", "{category}")  # of ads without a form
FIELDS = ("text", "account_id", "category", "conversion_type", "price")
