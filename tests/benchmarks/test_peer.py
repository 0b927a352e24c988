"""The T5 peer: what it generates, and its size. Its speed is no test's matter."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gr4ad_jax.benchmarks import peer  # noqa: E402

CODEBOOKS = (6, 5, 4)
PARAMETERS = 20_000


def _codes(count=40, seed=0):
  every = np.array(list(itertools.product(*map(range, CODEBOOKS))), np.int32)
  return np.random.default_rng(seed).choice(every, count, replace=False)


def _decoder(codes_NT, **settings):
  given = {"width": 16, "layers": 2, "batch": 3, "beams": 64, "context": 7} | settings
  return peer.t5_decode(codes_NT, CODEBOOKS, PARAMETERS, **given)


def _exhaustive(decoder, codes_NT):
  """[B, N] log-probability of every UA-SID under the softmax over all tokens, teacher-forced."""
  tokens_NT = torch.as_tensor(codes_NT + peer.token_offsets(CODEBOOKS)[:-1])
  scores = []
  with torch.inference_mode():
    for row_1S in decoder.context_BS.split(1):
      logits_NTV = decoder.model(input_ids=row_1S.repeat(len(codes_NT), 1), labels=tokens_NT).logits
      scores.append(logits_NTV.log_softmax(-1).gather(-1, tokens_NT[..., None]).sum((1, 2)))
  return torch.stack(scores).numpy()


@pytest.mark.parametrize("share_context", [False, True])
def test_wide_beams_find_all_ua_sids_in_order_of_probability(share_context):
  codes_NT = _codes()
  decoder = _decoder(codes_NT, share_context=share_context)
  found_BWT = decoder.decode()
  assert found_BWT.shape == (3, 64, 3)
  for found_WT, logp_N in zip(found_BWT, _exhaustive(decoder, codes_NT), strict=True):
    assert (found_WT[len(codes_NT) :] == -1).all()
    row_of = {tuple(codes): row for row, codes in enumerate(codes_NT.tolist())}
    rows = [row_of[tuple(codes)] for codes in found_WT[: len(codes_NT)].tolist()]
    assert sorted(rows) == list(range(len(codes_NT)))
    assert (np.diff(logp_N[rows]) < 1e-5).all()


def test_a_shared_context_gives_what_generate_gives_alone():
  codes_NT = _codes(100)
  plain, shared = (
    _decoder(codes_NT, share_context=share, beams=8).decode() for share in (False, True)
  )
  assert (plain >= 0).all()
  np.testing.assert_array_equal(plain, shared)


def test_prefix_tokens_are_those_of_the_index():
  codes_NT = np.array([[2, 1, 3], [2, 1, 0], [2, 4, 1], [0, 0, 0], [2, 1, 3]])
  allowed = peer.PrefixTokens(codes_NT, CODEBOOKS)

  def after(*tokens):
    return allowed(0, torch.tensor([peer.START, *tokens])).tolist()

  assert peer.token_offsets(CODEBOOKS).tolist() == [1, 7, 12, 16]
  assert after() == [1, 3]
  assert after(3) == [8, 11]
  assert after(3, 8) == [12, 15]
  assert after(1, 7) == [12]
  assert after(2) == [peer.START]  # no ad has the code: the beam's score is -inf already


def test_the_size_is_as_asked():
  decoder = _decoder(_codes())
  assert abs(decoder.parameters - PARAMETERS) < 0.05 * PARAMETERS
  with pytest.raises(ValueError, match=r"layers=9 is not allowed: a T5 of width 16 has"):
    _decoder(_codes(), layers=9)


def test_a_seed_gives_one_peer():
  codes_NT = _codes()
  first, again, other = (_decoder(codes_NT, seed=seed).decode() for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_timing_leaves_torch_as_it_was():
  before = torch.get_num_threads()
  seconds = _decoder(_codes(), threads=before + 1, beams=4)()
  assert 0 < seconds < 60 and torch.get_num_threads() == before


def test_missing_packages_are_named():
  code = (
    "import sys; sys.modules['transformers'] = None\n"
    "from gr4ad_jax.benchmarks import peer; peer.t5_decode([[0, 0]], (2, 2), 1000)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert (
    done.stderr.splitlines()[-1]
    == "ImportError: transformers is missing: pip install 'gr4ad_jax[peer]'"
  )
