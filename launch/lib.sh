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

# `check_number FLAG VALUE LEAST`: refuses what is not a whole number of at least LEAST.
check_number() {
  case $2 in
    '' | *[!0-9]* | ??????????*) fail "$1=$2 is not allowed: a whole number of at least $3" ;;
  esac
  [ "$2" -ge "$3" ] || fail "$1=$2 is not allowed: a whole number of at least $3"
}

# `check_installed PROGRAM REMEDY`: refuses where a program is missing.
check_installed() {
  command -v "$1" >/dev/null || fail "$1 is missing: $2"
}

# Refuses flags of a training that do not name the run's directory: a job's processes share it.
check_workdir() {
  case " $* " in
    *" --workdir="?*) ;;
    *) fail "no --workdir=… among the flags of the training: name the run's directory, on a disk that all hosts share" ;;
  esac
}
