# What the launchers share; sourced from the root of the checkout. Written for bash 3.2.
# shellcheck shell=bash

# One line about a mistake of the user's; exit status 2, as that of the binaries.
fail() {
  echo "error: $*" >&2
  exit 2
}

# The words of a command on one line, quoted so that it can be pasted into a shell.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/$quote}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command, or prints it where dry_run is true.
perform() {
  if ${dry_run:-false}; then
    quoted "$@"
  else
    "$@"
  fi
}

# `check_number FLAG VALUE LEAST [MOST]`: refuses what is not a whole number in these bounds. A leading zero would make it octal.
check_number() {
  local allowed="a whole number of at least $3"
  [ $# -lt 4 ] || allowed="a whole number from $3 to $4"
  case $2 in
    0[0-9]*) allowed="$allowed, without a leading zero" ;;
    '' | *[!0-9]* | ??????????*) ;;
    *) [ "$2" -lt "$3" ] || [ "$2" -gt "${4:-$2}" ] || return 0 ;;
  esac
  fail "$1=$2 is not allowed: $allowed"
}

# `check_installed PROGRAM REMEDY`: refuses where a program is missing.
check_installed() {
  command -v "$1" >/dev/null || fail "$1 is missing: $2"
}

# Sets `workdir` to the run's directory; refuses flags of a training that do not name it: a job's processes share it.
check_workdir() {
  local word
  workdir=
  for word in "$@"; do
    case $word in
      --workdir=*) workdir=${word#*=} ;; # the last one wins
    esac
  done
  [ -n "$workdir" ] ||
    fail "no --workdir=… among the flags of the training: name the run's directory, on a disk that all hosts share"
}

# `check_shared FLAG`: refuses a workdir elsewhere than on the shared disk, which FLAG mounts.
check_shared() {
  case $workdir in
    /mnt/runs/?*) ;;
    *) fail "--workdir=$workdir is not allowed: with $1 it lies below /mnt/runs, where the shared disk is mounted" ;;
  esac
}
