"""How good a tokenizer is: its codes and its vectors (docs/design/evaluation.md).

Of the codes it tells collisions, use and balance. A *collision* is a UA-SID that several ads share.
Of the vectors it tells *item-to-item recall*: how many of an ad's neighbours are near it.
"""

import math

import numpy as np

from gr4ad_jax.data import schema
from gr4ad_jax.index.index import SidIndex
from gr4ad_jax.sid import encoders, last_level, tokenizer, tower
from gr4ad_jax.sid.nearest import nearest
from gr4ad_jax.swing import by_config, swing

CUTS = (1, 5, 10)
PART = 64  # queries whose best ads are found at once
UNSEEN = 0.1  # share of ads kept from the tower in the unseen-ads figure


def code_quality(codes_NT: np.ndarray, codebooks: tuple[int, ...]) -> dict:
  """Collisions, use and balance of UA-SIDs.

  Args:
    codes_NT: UA-SID of each ad.
    codebooks: codes a level.

  Returns:
    A dict of
    items_per_sid: ads over distinct UA-SIDs;
    collision_rate: share of ads whose UA-SID is not theirs alone;
    utilisation: distinct UA-SIDs over the product of the codebooks;
    most_in_prefix: ads of the fullest prefix, all levels but the last;
    levels: of each its codes, those used, entropy in bits, perplexity, and the ads of the largest
    code over the mean of the codebook.
  """
  num_ads = len(codes_NT)
  _, size = np.unique(codes_NT, axis=0, return_counts=True)
  _, prefix = np.unique(codes_NT[:, :-1], axis=0, return_counts=True)
  levels = []
  for code_N, codebook in zip(codes_NT.T, codebooks, strict=True):
    count = np.bincount(code_N, minlength=codebook)
    # Without zeros, as 0 · log 0 would be NaN.
    share = count[count > 0] / num_ads
    entropy = float(-(share * np.log2(share)).sum()) + 0.0  # of one code -0.0, which reads oddly
    levels.append(
      {
        "codes": int(codebook),
        "used": int((count > 0).sum()),
        "entropy_bits": entropy,
        "perplexity": 2.0**entropy,
        "largest_over_mean": float(count.max() * codebook / num_ads),
      }
    )
  return {
    "items_per_sid": num_ads / len(size),
    "collision_rate": float(size[size > 1].sum() / num_ads),
    "utilisation": len(size) / float(np.prod(np.asarray(codebooks, np.float64))),
    "most_in_prefix": int(prefix.max()),
    "levels": levels,
  }


def sharing(index: SidIndex, mode: str) -> str | None:
  """A line on the ads that share their UA-SID, and why they do; None where none does.

  Args:
    index: the ads' UA-SIDs.
    mode: how the last level was made, "hash" or "probe".
  """
  num_ads = len(index.codes_NT)
  codes = math.prod(index.codebooks)
  if not index.num_shared:
    return None
  if mode == "hash":
    why = "--last_level=hash does not look whether a code is taken; --last_level=probe does"
  elif num_ads > codes:
    why = (
      f"--codebooks={','.join(map(str, index.codebooks))} have {codes} UA-SIDs for {num_ads} "
      "ads: take larger ones"
    )
  else:
    why = (
      "their prefixes had no free code when they were made; --last_level=probe moves such "
      "ads now, in a new workdir"
    )
  return f"{index.num_shared} of {num_ads} ads share their UA-SID with others: {why}"


def item_recall(
  vectors_ND: np.ndarray,
  truth: swing.Neighbors,
  known: swing.Neighbors | None = None,
  queries: np.ndarray | None = None,
) -> dict[str, float]:
  """Item-to-item recall of vectors against neighbours.

  An ad with at least one true neighbour is a *query*. All other ads but its known neighbours are
  ranked by their dot product with it. recall@K is the number of true neighbours among the first K,
  over min(K, number of true neighbours). It is averaged over queries.

  Args:
    vectors_ND: unit vectors.
    truth: the neighbours to be found.
    known: neighbours that were trained on, and are no candidates. None by default.
    queries: ad rows to ask for. All by default.

  Returns:
    {"recall@1": …, "recall@5": …, "recall@10": …, "queries": count}. Recalls are NaN without a
    query.
  """
  queries = np.arange(len(vectors_ND)) if queries is None else queries
  queries = queries[(truth.ads_NK[queries] >= 0).any(axis=1)]
  hits = {cut: [] for cut in CUTS}
  for at in range(0, len(queries), 1024):  # a [1024, N] product is held at once
    asked = queries[at : at + 1024]
    score = vectors_ND[asked] @ vectors_ND.T
    # An ad is no neighbour of itself.
    score[np.arange(len(asked)), asked] = -np.inf
    if known is not None:
      row, slot = np.nonzero(known.ads_NK[asked] >= 0)
      score[row, known.ads_NK[asked[row], slot]] = -np.inf
    best = np.concatenate(
      [_best(score[part : part + PART], max(CUTS)) for part in range(0, len(asked), PART)]
    )
    # (Q, 10, 1) == (Q, 1, K) -> (Q, 10): the -1 that pads neighbours is no ad.
    found = (best[:, :, None] == truth.ads_NK[asked][:, None, :]).any(axis=2)
    wanted = (truth.ads_NK[asked] >= 0).sum(axis=1)
    for cut in CUTS:
      hits[cut].append(found[:, :cut].sum(axis=1) / np.minimum(cut, wanted))
  recall = {
    f"recall@{cut}": float(np.concatenate(h).mean()) if h else float("nan")
    for cut, h in hits.items()
  }
  return recall | {"queries": len(queries)}


def _best(score_QN: np.ndarray, most: int) -> np.ndarray:
  """The `most` ads of the highest scores of each query, best first, equal ones by row.

  They are found by partition, in time that grows with N and not with N log N. Where more ads share
  the last score than there are places, the first rows have them.

  Returns:
    [Q, min(most, N)] ad rows.
  """
  most = min(most, score_QN.shape[1])
  cut = score_QN.shape[1] - most
  # The lowest score that is kept.
  last_Q1 = np.partition(score_QN, cut, axis=1)[:, cut, None]
  keep_QN = score_QN >= last_Q1
  # Queries with too many ads of that score: those above it stay, then ties fill up from row 0.
  crowded = np.flatnonzero(np.count_nonzero(keep_QN, axis=1) > most)
  above_QN = score_QN[crowded] > last_Q1[crowded]
  places_Q1 = most - np.count_nonzero(above_QN, axis=1, keepdims=True)
  tie_QN = keep_QN[crowded] & ~above_QN
  keep_QN[crowded] = above_QN | (tie_QN & (np.cumsum(tie_QN, axis=1) <= places_Q1))
  # Each row has `most` now, so the flat list is a rectangle. It ascends, so that the stable sort
  # keeps ties by row.
  ad_QK = np.nonzero(keep_QN)[1].reshape(len(score_QN), most)
  order_QK = np.argsort(-np.take_along_axis(score_QN, ad_QK, axis=1), axis=1, kind="stable")
  return np.take_along_axis(ad_QK, order_QK, axis=1)


def quality_report(
  fitted: tokenizer.Tokenizer,
  ads: schema.AdTable,
  events: schema.EventLog,
  codes_NT: np.ndarray,
  *,
  unseen: bool = True,
  told: swing.Told | None = None,
) -> dict:
  """Everything that is reported of a tokenizer, as values that JSON takes.

  Item-to-item recall asks for the Swing pairs that the tower was not trained on
  (`tokenizer.HELD_OUT`). A query's own trained neighbours are no candidates, for trained and
  content vectors alike. Ads that only list the query as theirs stay, as distractors.

  The two ads of a held-out pair were seen in other pairs. The `unseen` figure is stricter: a second
  tower of the same settings never meets a tenth of the ads, neither as anchor, positive nor
  negative. Those ask for all their neighbours among all ads.

  All vectors are held in memory, and each ad that asks meets all others.

  Args:
    fitted: the tokenizer.
    ads: the ads it was fitted on.
    events: the log it was fitted on.
    codes_NT: their UA-SIDs.
    unseen: whether to train that second tower.
    told: hears how far Swing is, which is fitted anew.

  Returns:
    A dict of "ads", "codebooks" and "last_level"; "codes": {"hash", "probe"}, as `code_quality`
    gives them; "item_recall": {"content", "trained"}, or None without a query; "unseen_ads":
    likewise; "moved_by_balance": share of ads whose first code is not the nearest.

  Raises:
    schema.DataError: bad vectors, as in `encoders.encode`.
  """
  config = fitted.config
  text_ND = encoders.encode(ads, config.encoder)
  vectors_ND = fitted.embed(ads)
  neighbors = by_config.co_occurrence(events, len(ads), config, fitted.seed, told)
  # Share and seed are those of `tokenizer.fit`, so this is the very split that the tower had.
  pairs, held_out = neighbors.split(tokenizer.HELD_OUT, fitted.seed)
  report = {
    "ads": len(ads),
    "codebooks": list(config.codebooks),
    "last_level": config.last_level,
    "codes": _of_both_modes(ads, codes_NT, config.codebooks),
    "moved_by_balance": _moved(fitted, vectors_ND, codes_NT),
    "item_recall": _measured(
      {
        "content": item_recall(text_ND, held_out, pairs),
        "trained": item_recall(vectors_ND, held_out, pairs),
      }
    ),
    "unseen_ads": None,
  }
  if unseen and fitted.tower is not None:
    report["unseen_ads"] = _unseen_recall(fitted, ads, neighbors, text_ND)
  return report


def _moved(fitted: tokenizer.Tokenizer, vectors_ND: np.ndarray, codes_NT: np.ndarray) -> float:
  """Share of ads whose first code is another than it would be without balance."""
  nearest_N = nearest(fitted.quantized(vectors_ND), fitted.centroids[0], 1)[0][:, 0]
  return float((nearest_N != codes_NT[:, 0]).mean())


def _of_both_modes(
  ads: schema.AdTable, codes_NT: np.ndarray, codebooks: tuple[int, ...]
) -> dict[str, dict]:
  """`code_quality` of both ways to make the last level, whichever the tokenizer uses."""
  # From the same prefixes. Without `nearby` no ad moves to another prefix.
  return {
    mode: code_quality(last_level.complete(ads, codes_NT[:, :-1], codebooks[-1], mode), codebooks)
    for mode in ("hash", "probe")
  }


def _unseen_recall(
  fitted: tokenizer.Tokenizer, ads: schema.AdTable, neighbors: swing.Neighbors, text_ND: np.ndarray
) -> dict[str, dict] | None:
  """Item-to-item recall for ads that a tower of the same settings never met."""
  # The second tower sees a smaller table, with rows of its own. Recall then asks among all ads.
  hidden_N = np.random.default_rng(fitted.seed).random(len(ads)) < UNSEEN
  shown = np.flatnonzero(~hidden_N)
  asked = np.flatnonzero(hidden_N)
  options = tokenizer.tower_settings(fitted.config) | {"seed": fitted.seed}
  second = tower.fit_tower(text_ND[shown], ads.take(shown), neighbors.among(shown), **options)
  return _measured(
    {
      "content": item_recall(text_ND, neighbors, queries=asked),
      "trained": item_recall(second.embed(text_ND, ads), neighbors, queries=asked),
    }
  )


def _measured(recalls: dict[str, dict]) -> dict[str, dict] | None:
  """The recalls, or None where there was no query to measure them on."""
  return recalls if all(recall["queries"] for recall in recalls.values()) else None


def format_report(report: dict) -> str:
  """The report as Markdown tables."""
  hashed = report["codes"]["hash"]
  probed = report["codes"]["probe"]
  lines = [
    (
      f"{report['ads']} ads, codebooks {tuple(report['codebooks'])}, last level: "
      f"{report['last_level']}"
    ),
    "",
  ]
  lines += ["| UA-SIDs | hash | probe |", "|---|---|---|"]
  for name, form in {
    "items_per_sid": "{:.4f}",
    "collision_rate": "{:.2%}",
    "utilisation": "{:.3%}",
  }.items():
    lines.append(
      f"| {name.replace('_', ' ')} | {form.format(hashed[name])} | {form.format(probed[name])} |"
    )
  lines.append(f"| most in a prefix | {hashed['most_in_prefix']} | {probed['most_in_prefix']} |")
  lines += [
    "",
    "| level | codes | used | entropy, bits | perplexity | largest / mean |",
    "|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {number} | {level['codes']} | {level['used']} | {level['entropy_bits']:.2f} | "
    f"{level['perplexity']:.1f} "
    f"| {level['largest_over_mean']:.2f} |"
    for number, level in enumerate(report["codes"][report["last_level"]]["levels"], start=1)
  ]
  lines += ["", "| item-to-item recall | queries | @1 | @5 | @10 |", "|---|---|---|---|---|"]
  groups = [("held-out pairs", report["item_recall"]), ("unseen ads", report["unseen_ads"])]
  for name, group in groups:
    for vectors, recall in (group or {}).items():
      figures = " | ".join(f"{recall[f'recall@{cut}']:.4f}" for cut in CUTS)
      lines.append(f"| {name}, {vectors} vectors | {recall['queries']} | {figures} |")
  return "\n".join(lines) + "\n"
