"""The builders by the name of their data set. Needs the `data` extra, as all of them do."""

from gr4ad_jax.builders.ad_log import AdLog
from gr4ad_jax.builders.amazon_reviews import AmazonReviews
from gr4ad_jax.builders.base import TableBuilder
from gr4ad_jax.builders.complete_journey import CompleteJourney
from gr4ad_jax.builders.online_retail import OnlineRetail

BUILDERS: dict[str, type[TableBuilder]] = {
  "ad_log": AdLog,
  "amazon_reviews": AmazonReviews,
  "complete_journey": CompleteJourney,
  "online_retail": OnlineRetail,
}
