#!/usr/bin/env bash
# Trains on a GKE cluster as a JobSet: renders its manifest and applies it with kubectl, or hands the same command to XPK.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
. launch/lib.sh

usage() {
  cat <<'TEXT'
usage: launch/gke.sh COMMAND --name=NAME [options] [-- flags of experiments.train]

  run     starts the training on every host, or goes on with one that was stopped
  logs    follows the log until the training ends: [--worker=0|1|…|all]
  stop    ends the pods and keeps the JobSet: they get SIGTERM, and save
  delete  deletes the JobSet, after a question: [--yes]

  of run, a slice of TPUs: --image=IMAGE --tpu=tpu-v5-lite-podslice --topology=4x4 --devices=4 (chips a host)
  or hosts with GPUs:      --image=IMAGE --gpu=nvidia-h100-80gb --hosts=2 --devices=8 (GPUs a host)
  --claim=PVC      the claim of the shared disk (ReadWriteMany), mounted as /mnt/runs; several hosts need one,
                   and with one --workdir lies below /mnt/runs
  --restarts=R     starts the job again R times at most (3)
  --namespace=N, --context=C  kubectl's

  with XPK, which makes a JobSet of its own: --xpk --cluster=C --zone=Z [--project=P] --tpu=v5litepod-16 --image=IMAGE

  --dry-run  print the manifest and the commands, do not run them

The image holds the package and JAX for the accelerator, with the checkout as working directory: docs/guide/launch.md has one.
Needed here: kubectl, set to a cluster with the JobSet controller; with --xpk, xpk, and a cluster that it made.
TEXT
}

command=
name=
image=
tpu=
topology=
gpu=
hosts=
devices=
claim=
restarts=3
worker=0
namespace=
context=
xpk=false
cluster=
zone=
project=
yes=false
dry_run=false
flags=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=true ;;
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --tpu=*) tpu=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --gpu=*) gpu=${1#*=} ;;
    --hosts=*) hosts=${1#*=}; check_number --hosts "$hosts" 1 ;;
    --devices=*) devices=${1#*=}; check_number --devices "$devices" 1 ;;
    --claim=*) claim=${1#*=} ;;
    --restarts=*) restarts=${1#*=}; check_number --restarts "$restarts" 0 ;;
    --worker=*) worker=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --context=*) context=${1#*=} ;;
    --xpk) xpk=true ;;
    --cluster=*) cluster=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --yes) yes=true ;;
    --) shift; flags=("$@"); break ;;
    -*) fail "$1 is not a flag of launch/gke.sh; flags of the training go after --" ;;
    run | logs | stop | delete)
      [ -z "$command" ] || fail "'$1': one command at a time, $command came before it"
      command=$1
      ;;
    *) fail "'$1' is not a command: run, logs, stop or delete" ;;
  esac
  shift
done

# `check_word FLAG VALUE`: refuses what may not stand between the quotes of the manifest.
check_word() {
  case $2 in
    '' | *[!A-Za-z0-9._/:@-]*) fail "$1=$2 is not allowed: letters, digits and . _ / : @ -" ;;
  esac
}

# Sets `hosts` to the topology's chips over the chips of a host.
count_hosts() {
  local chips=1 side rest=$topology
  case $topology in
    *[!0-9x]* | x* | *x | *xx* | '') fail "--topology=$topology is not allowed: sides of the slice, as 4x4 or 2x2x4" ;;
  esac
  while [ -n "$rest" ]; do
    side=${rest%%x*}
    chips=$((chips * 10#$side))
    case $rest in
      *x*) rest=${rest#*x} ;;
      *) rest= ;;
    esac
  done
  hosts=$((chips / devices))
  [ $((hosts * devices)) -eq "$chips" ] && [ "$hosts" -ge 1 ] ||
    fail "--devices=$devices is not allowed: a slice of $topology has $chips chips, a multiple of those of a host"
}

# The longest of the pods' host names is a label of DNS.
check_pod_name() {
  [ ${#1} -le 63 ] || fail "--name=$name is not allowed: the host name $1 has ${#1} characters, at most 63 are allowed"
}

check_run() {
  check_word --image "$image"
  check_workdir ${flags[@]+"${flags[@]}"}
  if $xpk; then
    check_word --tpu "$tpu"
    [ -z "$topology$gpu$hosts$devices$claim" ] || fail "--topology, --gpu, --hosts, --devices and --claim are not for --xpk"
    return
  fi
  [ -n "$devices" ] || fail "--devices= is not allowed: name the chips or GPUs of a host"
  [ -z "$claim" ] || check_word --claim "$claim"
  if [ -n "$tpu" ]; then
    check_word --tpu "$tpu"
    [ -z "$gpu$hosts" ] || fail "--gpu and --hosts are not for --tpu: the topology gives the hosts"
    count_hosts
  else
    check_word --gpu "$gpu"
    [ -z "$topology" ] || fail "--topology is not for --gpu"
    [ -n "$hosts" ] || fail "--hosts= is not allowed: name the number of hosts"
  fi
  check_pod_name "$name-hosts-0-$((hosts - 1))"
  [ "$hosts" -eq 1 ] || [ -n "$claim" ] || fail "--claim= is not allowed: $hosts hosts need a shared disk for --workdir"
  [ -z "$claim" ] || check_shared --claim
}

[ -n "$command" ] || fail "no command: run, logs, stop or delete"
case $name in
  '' | [!a-z]* | *- | *[!a-z0-9-]*) fail "--name=$name is not allowed: lower-case letters, digits and -" ;;
esac
if $xpk; then
  [ -n "$cluster" ] || fail "--cluster= is not allowed: --xpk needs the name of the cluster"
  [ -n "$zone" ] || fail "--zone= is not allowed: --xpk needs the zone of the cluster"
else
  [ -z "$cluster$zone$project" ] || fail "--cluster, --zone and --project are for --xpk; kubectl takes --context"
fi
case $worker in
  all) ;;
  *) check_number --worker "$worker" 0 ;;
esac
if [ "$command" = run ]; then
  check_run
else
  [ ${#flags[@]} -eq 0 ] || fail "$command takes no flags of the training"
fi
if ! $dry_run; then
  if ! $xpk || [ "$command" = logs ]; then check_installed kubectl "install it, and set it to the cluster"; fi
  ! $xpk || check_installed xpk "install it with pip"
fi

kubectl=(kubectl)
[ -z "$context" ] || kubectl+=("--context=$context")
[ -z "$namespace" ] || kubectl+=("--namespace=$namespace")
place=("--cluster=$cluster" "--zone=$zone")
[ -z "$project" ] || place+=("--project=$project")

# The training's command line, for a shell in the pod. A slice of TPUs is detected; hosts with GPUs are told who they are.
training() {
  local start=--distributed=auto
  # shellcheck disable=SC2016 # expanded in the pod
  [ -z "$gpu" ] || start="--coordinator=$name-hosts-0-0.$name:8476 --num_processes=$hosts --process_id=\$JOB_COMPLETION_INDEX"
  echo "python -m experiments.train $start $(quoted "${flags[@]}")"
}

# A string as YAML reads it between single quotes.
yaml_string() {
  local quote="''"
  printf "'%s'" "${1//\'/$quote}"
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: '$name'
YAML
  [ -z "$tpu" ] || cat <<YAML
  annotations: # the node pool is the slice
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
YAML
  cat <<YAML
spec:
  suspend: false
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
YAML
  if [ -n "$tpu" ]; then
    cat <<YAML
              cloud.google.com/gke-tpu-accelerator: '$tpu'
              cloud.google.com/gke-tpu-topology: '$topology'
YAML
  else
    cat <<YAML
              cloud.google.com/gke-accelerator: '$gpu'
YAML
  fi
  cat <<YAML
            containers:
            - name: train
              image: '$image'
              command: [bash, -c]
              args:
              - $(yaml_string "exec $(training)")
              resources:
                limits:
                  $([ -n "$tpu" ] && echo google.com/tpu || echo nvidia.com/gpu): $devices
YAML
  [ -z "$claim" ] || cat <<YAML
              volumeMounts:
              - name: runs
                mountPath: /mnt/runs
            volumes:
            - name: runs
              persistentVolumeClaim:
                claimName: '$claim'
YAML
}

run() {
  if $xpk; then
    perform xpk workload create "--workload=$name" "${place[@]}" "--tpu-type=$tpu" "--docker-image=$image" \
      "--max-restarts=$restarts" "--command=$(training)"
  elif $dry_run; then
    manifest
    quoted "${kubectl[@]}" apply -f -
  else
    manifest | "${kubectl[@]}" apply -f -
  fi
}

logs() {
  local labels="jobset.sigs.k8s.io/jobset-name=$name"
  [ "$worker" = all ] || labels="$labels,batch.kubernetes.io/job-completion-index=$worker"
  perform "${kubectl[@]}" logs "--selector=$labels" --follow --prefix --tail=-1 --max-log-requests=100
}

stop() {
  ! $xpk || fail "stop is not for --xpk: delete ends the workload, and its run goes on from the last checkpoint"
  perform "${kubectl[@]}" patch jobset "$name" --type=merge '--patch={"spec":{"suspend":true}}'
}

delete() {
  local answer
  if ! $yes && ! $dry_run; then
    printf 'delete the job %s? What it wrote stays on the shared disk. [y/N] ' "$name" >&2
    read -r answer || answer=
    case $answer in
      y | Y | yes) ;;
      *) fail "not deleted" ;;
    esac
  fi
  if $xpk; then
    perform xpk workload delete "--workload=$name" "${place[@]}" --force
  else
    perform "${kubectl[@]}" delete jobset "$name"
  fi
}

"$command"
