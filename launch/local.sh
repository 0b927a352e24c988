#!/usr/bin/env bash
# Trains on this machine, in the environment that `make` installed: one process, or with -n a job of several over loopback.
# Written for bash 3.2, as on macOS: no `wait -n`, no associative arrays.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh

usage() {
  cat <<'TEXT'
usage: launch/local.sh [-n N] [--devices=K] [--restarts=R] [--dry-run] [--flagfile=FILE] [--workdir=DIR] [flags of experiments.train]

  -n N         a job of N processes over loopback; each line of output starts with the number of its process: [0]
  --devices=K  K devices a process, made of the CPU (JAX_PLATFORMS=cpu, and XLA_FLAGS with what it held before)
  --restarts=R start a job that failed again, R times at most; it goes on from its last checkpoint (needs -n)
  --grace=S    once a process failed, the others have S seconds to end by themselves, then SIGTERM (75; needs -n)
  --port=P     where process 0 listens; without it, a free port (needs -n)
  --dry-run    print the commands, one line a process, do not run them
  --flagfile   settings; without it, the flags given here and the defaults
  --workdir    the run's directory; without it, runs/local

Runs experiments.train with .venv/bin/python ($PYTHON overrides it). Ctrl-C, SIGTERM and SIGHUP are passed on as SIGTERM: the
job saves and ends; a second one kills it. The same command goes on with a run that was stopped.
Exit status: that of the first process that failed, else 0. A mistake in flags or data (2) is not started again; trouble with the disk (3) is.
TEXT
}

kill_after=30 # seconds from SIGTERM to SIGKILL
python=${PYTHON:-.venv/bin/python}
dry_run=false
processes=
devices=
restarts=0
grace=75
port=
job_flag=
flags=(--workdir=runs/local) # a --workdir that is given comes later, and wins
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=true ;;
    -n)
      [ $# -gt 1 ] || fail "-n needs a number of processes"
      processes=$2
      check_number -n "$2" 1
      shift
      ;;
    --devices=*) devices=${1#*=}; check_number --devices "$devices" 1 ;;
    --restarts=*) restarts=${1#*=}; check_number --restarts "$restarts" 0; job_flag=${1%%=*} ;;
    --grace=*) grace=${1#*=}; check_number --grace "$grace" 0; job_flag=${1%%=*} ;;
    --port=*) port=${1#*=}; check_number --port "$port" 1 65535; job_flag=${1%%=*} ;;
    --workdir=*) flags[0]=$1 ;;
    --*) flags+=("$1") ;;
    *) fail "'$1' is not a flag; see launch/local.sh --help" ;;
  esac
  shift
done
[ -n "$processes" ] || [ -z "$job_flag" ] || fail "$job_flag needs -n: it is about a job of several processes"

command=("$python" -m experiments.train "${flags[@]}")
if [ -n "$devices" ]; then
  forced=--xla_force_host_platform_device_count=$devices
  command=(env JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$forced" "${command[@]}")
fi
$dry_run || check_installed "$python" "run 'make train' once, or set PYTHON"
if [ -z "$processes" ]; then
  $dry_run || exec "${command[@]}"
  quoted "${command[@]}"
  exit 0
fi

# A port below the ephemeral ones that nothing listens on.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (: </dev/tcp/127.0.0.1/"$port") 2>/dev/null || break
  done
  echo "$port"
}

# Sets `process` to the command of process $1 of a job at port $2.
set_process() {
  process=("${command[@]}" "--coordinator=127.0.0.1:$2" "--num_processes=$processes" "--process_id=$1")
}

if $dry_run; then
  port=${port:-$(free_port)}
  for ((i = 0; i < processes; i++)); do
    set_process "$i" "$port"
    quoted "${process[@]}"
  done
  exit 0
fi

exec 8>&2
say() { echo "[launch] $*" >&8; }

# Each process leads a process group, so that a signal reaches what it started as well, and Ctrl-C reaches this script alone.
signal_group() { kill -"$1" -- "-$2" 2>/dev/null || true; }

signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    [ -z "$pid" ] || signal_group "$1" "$pid"
  done
}

# A moment that a signal to this script's group (Ctrl-C) does not cut short.
nap() { (trap '' INT TERM HUP && exec sleep 0.2); }

# Copies lines from stdin, each after the number of its process.
prefix() {
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

# Hears of every process over stdin. Where that ends without the word "end", this script was killed: ends what it left behind.
guard() {
  local word pid running deadline groups=""
  trap '' INT TERM HUP
  while read -r word; do
    case $word in
      end) exit 0 ;;
      forget) groups= ;; # an earlier attempt: all ended, and their numbers may be given to others
      *) groups="$groups $word" ;;
    esac
  done
  for pid in $groups; do signal_group TERM "$pid"; done
  deadline=$((SECONDS + kill_after))
  while [ "$SECONDS" -lt "$deadline" ]; do
    running=false
    for pid in $groups; do ! kill -0 -- "-$pid" 2>/dev/null || running=true; done
    $running || break
    nap
  done
  for pid in $groups; do signal_group KILL "$pid"; done
  rm -rf "$folder"
}

# Starts process $1 at port $2. Both ends of its pipes are open before it starts: one that dies at once leaves no reader waiting.
start() {
  mkfifo "$folder/out" "$folder/err"
  # shellcheck disable=SC2094 # the first opening keeps the others from waiting for each other
  exec 3<>"$folder/out" 4<"$folder/out" 5>"$folder/out" 3>&-
  # shellcheck disable=SC2094
  exec 3<>"$folder/err" 6<"$folder/err" 7>"$folder/err" 3>&-
  rm "$folder/out" "$folder/err"
  set_process "$1" "$2"
  set -m # what starts now gets a process group of its own
  prefix "$1" <&4 4<&- 5>&- 6<&- 7>&- 8>&- 9>&- &
  prefixers+=("$!")
  prefix "$1" <&6 >&2 4<&- 5>&- 6<&- 7>&- 8>&- 9>&- &
  prefixers+=("$!")
  "${process[@]}" </dev/null >&5 2>&7 4<&- 5>&- 6<&- 7>&- 8>&- 9>&- &
  pids[$1]=$!
  set +m
  exec 4<&- 5>&- 6<&- 7>&-
  echo "${pids[$1]}" >&9
}

# Says how process $1 ended with status $2.
tell_end() {
  if [ "$2" -gt 128 ]; then
    say "process $1 was ended by signal $(($2 - 128)) ($(kill -l "$(($2 - 128))"))"
  else
    say "process $1 ended with exit status $2"
  fi
}

# Waits until all processes ended. Sets `status`: that of the first that failed, else 0.
supervise() {
  local i code running deadline=
  status=0
  while :; do
    running=
    for ((i = 0; i < processes; i++)); do
      [ -n "${pids[i]}" ] || continue
      if kill -0 "${pids[i]}" 2>/dev/null; then
        running="$running $i"
        continue
      fi
      code=0
      wait "${pids[i]}" 2>/dev/null || code=$?
      signal_group KILL "${pids[i]}" # what it may have left behind
      pids[i]=
      [ "$code" -ne 0 ] || continue
      tell_end "$i" "$code"
      [ "$status" -eq 0 ] || continue
      status=$code
      deadline=$((SECONDS + grace))
    done
    [ -n "$running" ] || return 0
    if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
      if [ "$last_signal" = TERM ]; then last_signal=KILL; else last_signal=TERM; fi
      say "still running:$running; sends SIG$last_signal"
      signal_all "$last_signal"
      deadline=$((SECONDS + kill_after))
    fi
    nap
  done
}

# A signal to this script: the job is to save and end; at the second signal, to end at once.
# shellcheck disable=SC2329 # called by trap
on_signal() {
  if $stopping; then last_signal=KILL; else last_signal=TERM; fi
  stopping=true
  say "stops: sends SIG$last_signal to all processes, and waits for them"
  signal_all "$last_signal"
}

folder=$(mktemp -d "${TMPDIR:-/tmp}/gr4ad_launch.XXXXXX")
mkfifo "$folder/guard"
set -m
guard <"$folder/guard" &
set +m
exec 9>"$folder/guard"
trap on_signal INT TERM HUP
stopping=false
for ((attempt = 0; ; attempt++)); do
  pids=()
  prefixers=()
  $stopping || last_signal=
  at=${port:-$(free_port)}
  say "starts $processes processes; process 0 listens at 127.0.0.1:$at"
  echo forget >&9
  for ((i = 0; i < processes; i++)); do start "$i" "$at"; done
  ! $stopping || signal_all "$last_signal" # a signal that came between two starts
  supervise 2>/dev/null # hides what bash itself says of a process that a signal ended
  for pid in "${prefixers[@]}"; do wait "$pid" || true; done # the last lines
  if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$attempt" -ge "$restarts" ] || $stopping; then break; fi
  say "starts again ($((attempt + 1)) of $restarts)"
done
echo end >&9
rm -rf "$folder"
exit "$status"
