#!/usr/bin/env bash
# Trains on a Cloud TPU VM, one host or a slice of many: creates it, installs, starts on every worker, follows, stops, deletes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [options] [-- flags of experiments.train]

  create   makes the TPU VM: --type=v5litepod-16 [--version=SOFTWARE] [--spot]
  install  copies this checkout to every worker and installs it there: [--nfs=SERVER:/EXPORT]
  run      starts experiments.train --distributed=auto on every worker in the background, then does what logs does: -- --workdir=…
  logs     follows the log until the training ends, and exits with its status: [--worker=0|1|…|all]
  stop     SIGTERM to the training on every worker where it runs; waits until all have saved and ended
  delete   deletes the TPU VM, after a question: [--yes]
  up       create, install and run

  --project=P   without it, that of gcloud's configuration
  --version=V   TPU software; without it, the one that goes with --type
  --nfs=S:/E    the shared disk, mounted on every worker as /mnt/runs; several workers need one, for all of them write one --workdir,
                which then lies below /mnt/runs
  --dry-run     print the commands, do not run them

Needed here: gcloud, logged in, with the TPU API on. The same run command goes on with a run that was stopped.
TEXT
}

# The TPU software that goes with an accelerator type.
software() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type=$1: its software is not known here, name it with --version" ;;
  esac
}

command=
name=
zone=
project=
type=
version=
nfs=
worker=0
spot=false
yes=false
dry_run=false
flags=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=true ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --nfs=*) nfs=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --spot) spot=true ;;
    --yes) yes=true ;;
    --) shift; flags=("$@"); break ;;
    -*) fail "$1 is not a flag of launch/tpu_vm.sh; flags of the training go after --" ;;
    create | install | run | logs | stop | delete | up)
      [ -z "$command" ] || fail "'$1': one command at a time, $command came before it"
      command=$1
      ;;
    *) fail "'$1' is not a command: create, install, run, logs, stop, delete or up" ;;
  esac
  shift
done

[ -n "$command" ] || fail "no command: create, install, run, logs, stop, delete or up"
[ -n "$name" ] || fail "--name= is not allowed: name the TPU VM"
[ -n "$zone" ] || fail "--zone= is not allowed: name the zone, as us-west4-a"
case $command in
  create | up)
    [ -n "$type" ] || fail "--type= is not allowed: name the accelerator type, as v5litepod-16"
    version=${version:-$(software "$type")}
    ;;
esac
case $command in
  run | up)
    check_workdir ${flags[@]+"${flags[@]}"}
    [ -z "$nfs" ] || check_shared --nfs
    ;;
  *) [ ${#flags[@]} -eq 0 ] || fail "$command takes no flags of the training" ;;
esac
case $worker in
  all) ;;
  *) check_number --worker "$worker" 0 ;;
esac
case $nfs in
  '' | ?*:/*) ;;
  *) fail "--nfs=$nfs is not allowed: SERVER:/EXPORT" ;;
esac
$dry_run || check_installed gcloud "install the Google Cloud CLI"

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")

tpu_vm() { perform gcloud compute tpus tpu-vm "$@" "${where[@]}"; }

on_workers() { tpu_vm ssh "$name" "--worker=$1" "--command=$2"; }

create() {
  local more=()
  ! $spot || more=(--spot)
  tpu_vm create "$name" "--accelerator-type=$type" "--version=$version" ${more[@]+"${more[@]}"}
}

# Copies the checkout to the workers' homes, as one archive. In a shell of its own, which removes its folder at the end.
copy() (
  folder=${TMPDIR:-/tmp}/gr4ad_jax.XXXXXX
  if ! $dry_run; then
    folder=$(mktemp -d "$folder")
    trap 'rm -rf "$folder"' EXIT
  fi
  perform tar --exclude=./.git --exclude=./.venv --exclude=./runs -czf "$folder/gr4ad_jax.tgz" .
  tpu_vm scp "$folder/gr4ad_jax.tgz" "$name:gr4ad_jax.tgz" --worker=all
)

# For the workers' shells: ends them where a training runs.
idle="if kill -0 \"\$(cat train.pid 2>/dev/null)\" 2>/dev/null; then echo 'error: a training runs already' >&2; exit 2; fi"
# … each line after the number of its worker.
label="sed -u \"s/^/[\${HOSTNAME##*-w-}] /\""

# The archive is unpacked into a fresh folder, and what is in it takes the place of what has its name in the copy: a module that was
# deleted is gone, while logs and runs stay. The images hold an older Python than is needed, so uv fetches one.
install() {
  local mount
  copy
  on_workers all "mkdir -p gr4ad_jax && cd gr4ad_jax || exit 2; $idle;\
 rm -rf ../gr4ad_jax.new && mkdir ../gr4ad_jax.new && tar -xzf ../gr4ad_jax.tgz -C ../gr4ad_jax.new &&\
 ls -A ../gr4ad_jax.new | while IFS= read -r each; do rm -rf \"./\$each\" && mv \"../gr4ad_jax.new/\$each\" . || exit 1; done &&\
 python3 -m pip install --quiet --user --upgrade uv && python3 -m uv venv --quiet --clear --python=3.12 .venv &&\
 python3 -m uv pip install --quiet --python=.venv -e '.[data,text,plots,log,gs]' 'jax[tpu]>=0.10.2,<0.12'"
  if [ -n "$nfs" ]; then
    printf -v mount '%q' "$nfs"
    on_workers all "sudo apt-get install -y -qq nfs-common && sudo mkdir -p /mnt/runs &&\
 { mountpoint -q /mnt/runs || sudo mount -t nfs $mount /mnt/runs; } && sudo chmod 1777 /mnt/runs"
  fi
}

# train.pid holds the shell that waits for the training, and writes its exit status as the last line of the log.
run() {
  local shared=
  case $workdir in
    /mnt/runs/?* | gs://?*) ;; # a bucket needs no disk; the training itself refuses one for several workers
    *)
      shared=" if mountpoint -q /mnt/runs; then"
      shared="$shared echo 'error: --workdir is not below /mnt/runs, where the shared disk is mounted' >&2; exit 2; fi;"
      ;;
  esac
  on_workers all "cd gr4ad_jax || exit 2; $idle;$shared\
 { trap '' HUP; .venv/bin/python -m experiments.train --distributed=auto $(quoted "${flags[@]}");\
 echo \"ended with exit status \$?\"; } >train.log 2>&1 </dev/null & echo \$! >train.pid"
  logs
}

# Without that last line the training was killed, with its shell: 1.
logs() {
  on_workers "$worker" "cd gr4ad_jax && tail -n +1 -F --pid=\"\$(cat train.pid)\" train.log | $label;\
 status=\$(sed -n '\$s/^ended with exit status //p' train.log); exit \"\${status:-1}\""
}

stop() {
  on_workers all "cd gr4ad_jax || exit 2; { pid=\$(cat train.pid 2>/dev/null);\
 if kill -0 \"\$pid\" 2>/dev/null; then pkill -TERM -P \"\$pid\"; tail -f /dev/null --pid=\"\$pid\";\
 else echo 'no training runs'; fi;\
 [ ! -e train.log ] || tail -n 2 train.log; } | $label"
}

delete() {
  local answer
  if ! $yes && ! $dry_run; then
    printf 'delete the TPU VM %s in %s, with all that lies on its disks? [y/N] ' "$name" "$zone" >&2
    read -r answer || answer=
    case $answer in
      y | Y | yes) ;;
      *) fail "not deleted" ;;
    esac
  fi
  tpu_vm delete "$name" --quiet
}

up() {
  create
  install
  run
}

"$command"
