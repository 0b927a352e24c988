"""What builders of prepared data share: ArrayRecord files in the order written, no TensorFlow."""

from collections.abc import Mapping
from typing import Any

from gr4ad_jax.data.extras import optional

tfds = optional("tensorflow_datasets")
# TFDS would name it only once it writes, after the reading is done.
optional("array_record.python.array_record_module")


class StoredBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder whose examples are stored in the order in which they are made."""

  # nothing is downloaded; TFDS's own property needs importlib_resources, a package it omits
  url_infos: dict = {}

  def __init__(self, **kwargs):
    super().__init__(file_format="array_record", **kwargs)

  def _stored_info(self, columns: Mapping[str, Any]):
    """What TFDS keeps beside the data.

    Args:
      columns: feature of each column, by its name.
    """
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(columns),
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )
