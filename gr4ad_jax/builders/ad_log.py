"""`ad_log`: a user's own ad table and event log, each a Parquet or CSV file."""

from typing import Any

from gr4ad_jax.builders import base
from gr4ad_jax.config import ConfigError, DataConfig
from gr4ad_jax.data.schema import Dataset
from gr4ad_jax.reading import column_files, tables


class AdLog(base.TableBuilder):
  """The schema's own columns: `tables.AD_COLUMNS` and `tables.EVENT_COLUMNS`, the optional ones
  where they are there.

  Of a user with three visits or more, the last visit is test and the one before it valid.
  """

  @classmethod
  def sources(cls, data: DataConfig) -> dict[str, str]:
    """Both paths. Raises DataError where one is not set or not there."""
    return tables.source_files(data)

  @classmethod
  def options(cls, data: DataConfig) -> dict[str, Any]:
    """What `tables.event_log` goes by. Raises ConfigError where the behaviours are not distinct
    names.
    """
    if not data.behaviors or len(set(data.behaviors)) < len(data.behaviors):
      raise ConfigError(
        f"behaviors must be one or more distinct names, shallowest first, not {data.behaviors}"
      )
    return {
      # A change of how files are read makes what was prepared before stale.
      "reader": column_files.READER,
      "behaviors": list(data.behaviors),
      "on_unknown_ad": data.on_unknown_ad,
      "session_gap_minutes": data.session_gap_minutes,
    }

  @classmethod
  def read(cls, data: DataConfig) -> Dataset:
    """Both files, checked. Raises DataError."""
    ad_cells = column_files.read_file(data.ads_path, tables.AD_COLUMNS, tables.AD_OPTIONAL)
    event_cells = column_files.read_file(
      data.events_path, tables.EVENT_COLUMNS, tables.EVENT_OPTIONAL
    )
    ads = tables.ad_table(ad_cells)
    rules = tables.EventRules(data.behaviors, data.on_unknown_ad, data.session_gap_minutes)
    events, dropped = tables.event_log(event_cells, ads, rules)
    # Every row is an event, or counted by the reason why it is none.
    report = base.report(ads, events, rows=len(event_cells["user_id"]), dropped=dropped)
    return Dataset("ad_log", ads, events, tuple(data.behaviors), report)
