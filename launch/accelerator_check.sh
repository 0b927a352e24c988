#!/usr/bin/env bash
# Measures on an accelerator what can be measured nowhere else, most wanted first, in six minutes at most.
# It needs this checkout and jax, flax, optax, orbax, chex, absl and numpy. Written for bash 3.2.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh

usage() {
  cat <<'TEXT'
usage: launch/accelerator_check.sh [--out=DIR] [--seconds=S] [--small] [--dry-run]

  --out=DIR    where figures and logs go (runs/accelerator); what is there already is not measured again
  --seconds=S  when to stop (350)
  --small      sizes that a CPU takes, to try this script
  --dry-run    print the commands, one a line, do not run them

Runs parts of experiments.benchmark one after the other with .venv/bin/python, or python3 where there is none ($PYTHON
overrides both). Each writes DIR/<part>.json when it has ended, so whatever stops this script leaves the parts before whole.
A part that fails is told, and the next one begins: its words are in DIR/<part>.log. Ctrl-C ends it; so does SIGTERM.
DIR/summary.txt has all figures in words. Exit status: 1 where a part failed, else 0, whether or not time was left for all.
TEXT
}

out=runs/accelerator
seconds=350
small=false
dry_run=false
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --out=?*) out=${1#*=} ;;
    --out=) fail "--out= is not allowed: name a folder" ;;
    --seconds=*) seconds=${1#*=}; check_number --seconds "$seconds" 1 ;;
    --small) small=true ;;
    --dry-run) dry_run=true ;;
    *) fail "'$1' is not a flag; see launch/accelerator_check.sh --help" ;;
  esac
  shift
done
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
$dry_run || check_installed "$PYTHON" "install Python 3.11 or later, or set PYTHON"
$dry_run || check_installed timeout "it is a part of GNU coreutils"

# Training: the preset of the published figures, and the one whose sizes fill an accelerator's units.
model=(--preset=0.16b --batch_size=1024 --compute_dtype=bfloat16)
before=(--preset=0.16b_832 --batch_size=1024 --compute_dtype=bfloat16)
products=(--cross_attention=plain --head_piece=16384)
# Search: a context of 512, as in docs/log/serving.md.
search=(--preset=0.16b --compute_dtype=bfloat16 --beams=128-256-512 --history_slots=384 --neighbor_slots=95 --rising_slots=32)
timed=(--repetitions=3)
searched=(--repetitions=100)
batches=1,8,32,64,128
if $small; then
  sizes=(--layers=2 --lazy_layers=1 --width=32 --heads=2 --kv_groups=2 "--codebooks=16,8,4" --history_slots=5 --neighbor_slots=2
    --rising_slots=0 --targets=2)
  model=("${sizes[@]}" --batch_size=2)
  before=("${sizes[@]}" --batch_size=2 --kv_groups=1)
  products=(--cross_attention=plain --head_piece=16)
  search=("${sizes[@]}" --beams=2-3-4 --ads=50)
  timed=(--repetitions=1)
  searched=(--repetitions=2)
  batches=1,2
fi

# Where time must go, most wanted first. `part NAME ARGUMENTS…`, the arguments those of experiments.benchmark.
parts() {
  part kernels --suite=kernels "${model[@]}" "${timed[@]}"
  part step --suite=step "${model[@]}" "${timed[@]}"
  part step_products --suite=step "${model[@]}" "${products[@]}" "${timed[@]}"
  part search --suite=throughput "${search[@]}" --batches="$batches" "${searched[@]}"
  part step_832 --suite=step "${before[@]}" "${products[@]}" "${timed[@]}"
  part step_dots --suite=step "${model[@]}" --remat=dots "${timed[@]}"
  part search_fp8 --suite=throughput "${search[@]}" --quantize=fp8 --batches="$batches" "${searched[@]}"
  part step_full --suite=step "${model[@]}" --remat=full "${timed[@]}"
  part search_int8 --suite=throughput "${search[@]}" --quantize=int8 --batches="$batches" "${searched[@]}"
  part step_double --suite=step "${model[@]}" --batch_size=2048 --remat=dots "${timed[@]}"
  part server --suite=serve --workdir=pretrained:online_retail --minutes=0.5
}

failed=false
begin=$SECONDS

# What takes no figure of speed: the server's part needs extras that a borrowed machine may lack.
lacks_extras() {
  [ "$1" = server ] && { $small || ! "$PYTHON" -c 'import fastapi, uvicorn, pyarrow' 2>/dev/null; }
}

part() {
  local name=$1 left status=0
  shift
  if $dry_run; then
    quoted "$PYTHON" -m experiments.benchmark "$@" "--out=$out/$name.json"
    return
  fi
  left=$((seconds - (SECONDS - begin)))
  if [ -s "$out/$name.json" ]; then
    echo "$name: is there"
  elif [ "$left" -lt 1 ]; then
    echo "$name: not measured, no time was left"
  elif lacks_extras "$name"; then
    echo "$name: not measured, it needs the extras serve and data"
  else
    # In a process group of its own, which timeout leads: a signal to this script ends it by the trap below.
    timeout --kill-after=5 "$left" "$PYTHON" -m experiments.benchmark "$@" "--out=$out/$name.json" >"$out/$name.log" 2>&1 &
    running=$!
    wait "$running" || status=$?
    running=
    case $status in
      0) echo "$name: measured"; { echo "== $name"; cat "$out/$name.log"; } >>"$out/summary.txt" ;;
      124 | 137) echo "$name: not measured, the time was over" ;;
      *) failed=true; echo "$name: failed with $status, see $out/$name.log: $(tail -n 1 "$out/$name.log")" ;;
    esac
  fi
}

running=
# shellcheck disable=SC2329 # called by trap
stop() {
  [ -z "$running" ] || kill -TERM "$running" 2>/dev/null || true
  echo "stopped: what was measured is in $out" >&2
  exit 130
}
trap stop INT TERM HUP
$dry_run || mkdir -p "$out"
parts
! $failed || exit 1
