"""The inputs of a run on a folder of examples: columns of the log are mapped, batches are read."""

import dataclasses

import numpy as np

from gr4ad_jax.config import Config
from gr4ad_jax.data.ecpm import EcpmBins
from gr4ad_jax.evaluation import protocols
from gr4ad_jax.examples import fitting, mapped
from gr4ad_jax.examples.folder import ExampleFolder
from gr4ad_jax.examples.reading import ExampleContexts
from gr4ad_jax.examples.stages import OUTCOMES
from gr4ad_jax.features.lines import Outcomes
from gr4ad_jax.features.neighbors import NeighborFolds
from gr4ad_jax.features.trends import Trends
from gr4ad_jax.remote import inputs as remote_inputs
from gr4ad_jax.requests import inputs as inputs_lib
from gr4ad_jax.requests.inputs import Inputs
from gr4ad_jax.swing.swing import Told


@dataclasses.dataclass(frozen=True)
class LearnedLines:
  """Of `features.lines.Lines` what a run reads besides its batches, mapped from disk: columns of
  requests, outcomes, and the lines that are learned from.
  """

  request: np.ndarray  # [L]
  ad: np.ndarray  # [L]
  request_user: np.ndarray  # [R]
  request_time: np.ndarray  # [R]
  request_split: np.ndarray  # [R]
  outcomes: Outcomes

  @classmethod
  def of(cls, folder: ExampleFolder) -> "LearnedLines":
    """Those of a folder."""
    outcomes = {name: folder.column(f"outcomes/{name}") for name in OUTCOMES}
    # Examples hold no quantities of outcomes; nothing that learns from them reads any.
    none = np.zeros(0, np.float32)
    first = folder.column("requests/outcome_first")
    return cls(
      request=folder.column("lines/request"),
      ad=folder.column("lines/ad"),
      request_user=folder.column("requests/user"),
      request_time=folder.column("requests/time"),
      request_split=folder.column("requests/split"),
      outcomes=Outcomes(**outcomes, quantity=none, first=first),
    )


@dataclasses.dataclass(frozen=True)
class ExampleInputs(Inputs):
  """Inputs whose batches come from examples on disk.

  Attributes:
    folder: the examples.
  """

  folder: ExampleFolder

  def contexts(self, config: Config, split: str) -> ExampleContexts:
    """The batches of any split: each example is as its own split sees it."""
    # Which split an example is seen as was settled when it was made.
    del split
    depth = protocols.target_depth(self.dataset.behaviors, config.data.target_behavior)
    return ExampleContexts(self.folder, self.index.codes_NT, config.data, depth)

  def counts(self) -> Trends:
    """Popularity, of all that is known."""
    return mapped.load_trends(self.folder.tables, fitting.ALL)


def prepare(config: Config, source: str = "", told: Told | None = None) -> ExampleInputs:
  """As `inputs.prepare_inputs`, of the folder in --examples_path.

  Raises:
    ConfigError: settings other than those that the examples were made by; a run of another ad
      table.
    DataError: no whole folder of examples.
    DamagedError: a part of it is missing.
  """
  path = remote_inputs.local_path("examples_path", config.data.examples_path)
  folder = ExampleFolder.open(path)
  folder.check(config)
  dataset = folder.dataset()
  source = source or inputs_lib.source_of(config)
  tokenizer, index = inputs_lib.tokenizer_of(config, dataset, source, told)
  lines = LearnedLines.of(folder)
  if source:
    neighbors, ecpm = inputs_lib.load_features(source)
  else:
    names = "neighbors/ids", "neighbors/cosine"
    neighbors = NeighborFolds(*map(folder.column, names))
    # Fitted when the examples were made, by the same rules.
    requests = inputs_lib.learned_requests(lines, config)
    learned_P = np.isin(lines.outcomes.request, requests)
    # The edges of eCPM bins depend on what the run learns from, so they are not kept with the
    # examples.
    ecpm = EcpmBins.fit(lines.outcomes.value[learned_P], config.model.ecpm_bins)
  return ExampleInputs(dataset, tokenizer, index, lines, neighbors, ecpm, folder)
