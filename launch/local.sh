#!/usr/bin/env bash
# Trains on this machine, in the environment that `make` installed.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: launch/local.sh [--dry-run] [--flagfile=FILE] [--workdir=DIR] [any other flag of experiments.train]

  --dry-run   print the command, do not run it
  --flagfile  settings; without it, the flags given here and the defaults
  --workdir   the run's directory; without it, runs/local

Runs experiments.train with .venv/bin/python ($PYTHON overrides it). The same command goes on with a run that was stopped.
TEXT
}

python=${PYTHON:-.venv/bin/python}
dry_run=false
has_workdir=false
flags=()
for word in "$@"; do
  case $word in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=true ;;
    --workdir=*) has_workdir=true; flags+=("$word") ;;
    --*) flags+=("$word") ;;
    *) echo "error: '$word' is not a flag; see launch/local.sh --help" >&2; exit 2 ;;
  esac
done
$has_workdir || flags+=("--workdir=runs/local")

command=("$python" -m experiments.train "${flags[@]}")
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
if ! command -v "$python" >/dev/null; then
  echo "error: $python is missing: run 'make train' once, or set PYTHON" >&2
  exit 2
fi
exec "${command[@]}"
