"""What is known of a user before a request: the ads of the history, and features of them.

All is looked up in the running columns of `features/lines.py`.
"""

import numpy as np

from gr4ad_jax.data.schema import DAY
from gr4ad_jax.features.lines import DECAY, Lines
from gr4ad_jax.features.sparse_rows import Places, SparseRows

FEATURES = (
  "depth", "count", "decayed_count", "last_value", "total_value", "unit_price", "quantity",
  "gap_days", "gap_visits", "interval_days", "due", "rate", "in_last_visit",
)  # fmt: skip


def latest_lines(lines: Lines, requests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The latest line of each distinct ad before each request: the row of the request and the line,
  by row, then line; [n] each.
  """
  # Lines of a user lie together, in order of time: his own begin here and end before the request.
  begin_B = lines.user_first[requests]
  size_B = lines.request_first[requests] - begin_B
  # The users' lines as one run: a running number, moved to where each user's lie.
  line = np.arange(size_B.sum()) + np.repeat(begin_B - np.cumsum(size_B) + size_B, size_B)
  row = np.repeat(np.arange(len(requests)), size_B)
  # A line is the latest of its ad where the user's next one with this ad is not before the request.
  latest = (lines.next_request.take(line) >= requests.take(row)).nonzero()[0]
  return row.take(latest), line.take(latest)


def history_rows(lines: Lines, requests: np.ndarray, slots: int) -> np.ndarray:
  """The latest line of each distinct ad before a request, oldest first, at most `slots` of them.

  Returns:
    [B, slots] int64 line numbers, padded at the end with -1.
  """
  out = np.full((len(requests), slots), -1, np.int64)
  row, line = latest_lines(lines, requests)
  # [B] where each request's lines end among those that are left.
  end_B = np.cumsum(np.bincount(row, minlength=len(requests)))
  kept_B = np.minimum(np.diff(end_B, prepend=0), slots)
  # Below 0: the line is older than the slots reach.
  place = np.arange(len(row)) - (end_B - kept_B)[row]
  kept = place >= 0
  out[row[kept], place[kept]] = line[kept]
  return out


def ads_of(lines: Lines, rows: np.ndarray) -> np.ndarray:
  """Ad rows of line numbers, as `history_rows` gives them; -1 in padding."""
  # -1 would gather the last line; the mask replaces what row 0 gives.
  return np.where(rows >= 0, lines.ad[np.maximum(rows, 0)], -1)


def decayed_counts(lines: Lines, requests: np.ndarray, rows_BS: np.ndarray) -> np.ndarray:
  """How often each ad of the histories was taken, a visit counting DECAY times the next one.

  Args:
    lines: all lines.
    requests: [B] request numbers.
    rows_BS: line numbers, as `history_rows` gives them.

  Returns:
    [B, S] float64, as of the visit before the request; 0 in padding.
  """
  row = np.maximum(rows_BS, 0)
  # The count holds its own line with weight 1, so one visit less is forgotten than have passed.
  gap = lines.request_visit[requests][:, None] - lines.request_visit[lines.request[row]]
  return np.where(rows_BS >= 0, lines.decayed_count[row] * DECAY ** (gap - 1.0), 0)


def history_features(lines: Lines, requests: np.ndarray, rows_BS: np.ndarray) -> np.ndarray:
  """`line_features` of history slots.

  Returns:
    [B, S, len(FEATURES)] float32, zeros where a slot is padding.
  """
  b, s = (rows_BS >= 0).nonzero()
  out = np.zeros((*rows_BS.shape, len(FEATURES)), np.float32)
  out[b, s] = line_features(lines, requests[b], rows_BS[b, s]).T
  return out


def line_features(lines: Lines, request_n: np.ndarray, line_n: np.ndarray) -> np.ndarray:
  """Behaviour features of lines at request time, as in FEATURES; money and times on a log scale.

  Returns:
    [len(FEATURES), n] float32: a feature's values stand together.
  """
  told = lines.told
  out = np.empty((len(FEATURES), len(line_n)), np.float32)
  column = dict(zip(FEATURES, out, strict=True))  # views
  of_line = told.columns.take(line_n, axis=0)
  for name, values in zip(told.names, of_line.T, strict=True):
    if name in column:
      column[name][:] = values
  visit_n = lines.request_visit.take(request_n)
  gap_visits = visit_n - lines.request_visit.take(lines.request.take(line_n))
  gap_visits = gap_visits.astype(np.float32)
  gap_days = np.maximum(lines.request_time.take(request_n) - lines.time.take(line_n), 0) / DAY
  count = lines.count.take(line_n)
  decayed = lines.decayed_count.take(line_n) * DECAY ** (gap_visits - 1)
  np.log1p(decayed, out=column["decayed_count"])
  # Half the log of days: that of years of them then stays below 4.
  column["gap_days"][:] = np.log1p(gap_days) / 2
  np.log1p(gap_visits, out=column["gap_visits"])
  # One taking has no interval, and is never due.
  column["due"][:] = 0
  again = (count > 1).nonzero()[0]
  interval = told.interval.take(line_n[again])
  column["due"][again] = np.tanh(np.log((gap_days[again] + 1) / (interval + 1)))
  column["rate"][:] = count / np.maximum(visit_n, 1)
  column["in_last_visit"][:] = gap_visits == 1
  return out


USER_FEATURES = (
  "visits", "gap_days", "tenure_days", "lines_per_visit", "value_per_visit", "distinct_share",
  "season_sin", "season_cos",
)  # fmt: skip


def user_features(lines: Lines, requests: np.ndarray) -> np.ndarray:
  """What a user was like before a request, as in USER_FEATURES; counts, money and times on a log
  scale.

  Returns:
    [B, len(USER_FEATURES)] float32.
  """
  visits = lines.request_visit[requests].astype(np.float64)
  some = np.maximum(visits, 1)
  first = lines.user_first[requests]
  here = lines.request_first[requests]
  time = lines.request_time[requests]
  # The row before belongs to the same user, unless this is his first request: the mask sees to
  # that.
  previous = np.where(visits > 0, lines.request_time[requests - 1], time)
  # `first` is past the end for a user without a line in the last place of the log.
  begin = lines.request_time[lines.request[np.minimum(first, len(lines.request) - 1)]]
  # In radians. Sine and cosine together keep the turn of the year smooth.
  year = 2 * np.pi * time / (365.25 * DAY)
  return np.stack([
    np.log1p(visits),
    np.log1p(np.maximum(time - previous, 0) / DAY) / 2,
    np.log1p(np.maximum(time - begin, 0) / DAY) / 2,
    np.log1p((here - first) / some),
    np.log1p(np.maximum(lines.spent[here], 0) / some) / 2,
    (lines.fresh[here] - lines.fresh[first]) / np.maximum(here - first, 1),
    np.sin(year),
    np.cos(year),
  ], axis=-1).astype(np.float32)  # fmt: skip


CODE_FEATURES = ("code_1_share", "code_1_count", "code_2_share")


def own_decays(decayed_count: np.ndarray) -> np.ndarray:
  """Decayed counts of (request, ad) pairs by their feature `decayed_count`."""
  return np.expm1(decayed_count)


def total_decays(decay_BS: np.ndarray) -> np.ndarray:
  """[B, 1] sums of the decayed counts of a history's ads, above 0."""
  return np.maximum(decay_BS.sum(axis=1, keepdims=True), 1e-6)


def code_features(codes_NT, ad, of, slot_BS, decay_BS, own_decay) -> tuple[np.ndarray, ...]:
  """How much of a history shares an ad's first UA-SID code, or its first two: CODE_FEATURES.

  They alone of all features depend on UA-SIDs. So they are made when a batch is, and examples on
  disk outlive a change of codes.

  Args:
    codes_NT: UA-SID of each ad.
    ad: [n] rows of the ad table.
    of: [n] the row of the batch that each is of.
    slot_BS: rows of the history's ads, -1 in padding.
    decay_BS: their decayed counts (`history.decayed_counts`).
    own_decay: [n] of the ads themselves (`own_decays`).

  Returns:
    Three [n] columns, in the order of CODE_FEATURES.
  """
  total = total_decays(decay_BS)[of, 0]
  b, s = (slot_BS >= 0).nonzero()
  decay = decay_BS[b, s]
  # (n, T), (m, T): of the ads, and of the history's.
  wanted, held = (codes_NT.take(row, axis=0).astype(np.int64) for row in (ad, slot_BS[b, s]))
  first = others_of_group(wanted[:, 0], held[:, 0], of, b, decay, own_decay)
  # A pair as one number, as small as those of this batch allow.
  span = 1 + max(wanted[:, 1].max(initial=0), held[:, 1].max(initial=0))
  wanted, held = (codes[:, 0] * span + codes[:, 1] for codes in (wanted, held))
  both = others_of_group(wanted, held, of, b, decay, own_decay)
  return np.log1p(100 * first / total), np.log1p(first), np.log1p(100 * both / total)


def others_of_group(wanted, held, of, of_held, decay, own_decay) -> np.ndarray:
  """Decayed count of the history's other ads of an ad's group, [n].

  Args:
    wanted: [n] groups of the ads, whole numbers.
    held: [m] groups of the history's ads.
    of, of_held: [n], [m] their rows of the batch.
    decay: [m] decayed counts of the history's ads.
    own_decay: [n] of the ads themselves.
  """
  columns = 1 + int(max(wanted.max(initial=0), held.max(initial=0)))
  rows = 1 + int(max(of.max(initial=0), of_held.max(initial=0)))
  of_group = SparseRows(Places(of, wanted, rows, columns, len(held)), of_held, held)
  return np.maximum(of_group.sum(decay.take(of_group.kept)) - own_decay, 0)
