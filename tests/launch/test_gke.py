"""launch/gke.sh: the manifest, the commands, and that it calls what it prints, by kubectl and by
XPK.
"""

import pytest

from tests.launch import fakes

_TRAINING = ("--", "--workdir=/mnt/runs/r", "--mesh=data:-1,fsdp:4", "--note=it's")
_JOB = ("--name=big", "--image=host/i:1", "--claim=disk")
_TPU = (*_JOB, "--tpu=tpu-v5-lite-podslice", "--topology=2x4x4", "--devices=4")
_GPU = (*_JOB, "--gpu=nvidia-h100-80gb", "--hosts=2", "--devices=8")
_XPK = ("--xpk", "--name=big", "--cluster=c", "--zone=z")
_FLAGS = "--workdir=/mnt/runs/r --mesh=data:-1,fsdp:4 '--note=it'\\''s'"

_MANIFEST = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: 'big'
spec:
  suspend: false
  failurePolicy:
    maxRestarts: 3
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        parallelism: 2
        completions: 2
        completionMode: Indexed
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-accelerator: 'nvidia-h100-80gb'
            containers:
            - name: train
              image: 'host/i:1'
              command: [bash, -c]
              args:
              - 'exec python -m experiments.train --coordinator=big-hosts-0-0.big:8476 --num_processes=2 \
--process_id=$JOB_COMPLETION_INDEX --workdir=/mnt/runs/r --mesh=data:-1,fsdp:4 ''--note=it''\\''''s'''
              resources:
                limits:
                  nvidia.com/gpu: 8
              volumeMounts:
              - name: runs
                mountPath: /mnt/runs
            volumes:
            - name: runs
              persistentVolumeClaim:
                claimName: 'disk'
"""


def _manifest(tmp_path, *arguments):
  """What a dry run prints but for the command, read as YAML: its one job's template, its pods,
  the whole.
  """
  yaml = pytest.importorskip("yaml")
  done = fakes.launch(tmp_path, "gke.sh", "run", *arguments, "--dry-run", *_TRAINING)
  text, command = done.stdout.removesuffix("\n").rsplit("\n", 1)
  assert (done.returncode, done.stderr, command.split()[-3:]) == (0, "", ["apply", "-f", "-"])
  whole = yaml.safe_load(text)
  [job] = whole["spec"]["replicatedJobs"]
  return job["template"]["spec"], job["template"]["spec"]["template"]["spec"], whole


def test_dry_run_is_the_manifest_and_the_command(tmp_path):
  done = fakes.launch(
    tmp_path, "gke.sh", "run", *_GPU, "--context=k", "--namespace=n", "--dry-run", *_TRAINING
  )
  expected = f"{_MANIFEST}kubectl --context=k --namespace=n apply -f -\n"
  assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_a_slice_of_tpus(tmp_path):
  job, pods, whole = _manifest(tmp_path, *_TPU, "--restarts=7")
  assert job["parallelism"] == job["completions"] == 8  # 2 x 4 x 4 chips, 4 a host
  assert pods["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "2x4x4",
  }
  [container] = pods["containers"]
  assert container["args"] == [f"exec python -m experiments.train --distributed=auto {_FLAGS}"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert list(whole["metadata"]["annotations"].values()) == ["cloud.google.com/gke-nodepool"]
  assert whole["spec"]["failurePolicy"] == {"maxRestarts": 7}


def test_words_stay_words(tmp_path):
  """A number or a truth value of YAML as a name, and quotes in a flag, come out as they went in."""
  one = [word for word in _GPU if not word.startswith(("--image", "--claim", "--hosts"))]
  job, pods, whole = _manifest(
    tmp_path, *one, "--name=true", "--image=1e3", "--claim=true", "--hosts=1"
  )
  assert whole["metadata"]["name"] == "true"
  assert (job["parallelism"], pods["containers"][0]["image"]) == (1, "1e3")
  assert pods["volumes"][0]["persistentVolumeClaim"] == {"claimName": "true"}
  assert fakes.printed(pods["containers"][0]["args"][0])[0][-1] == "--note=it's"


def test_one_host_needs_no_claim(tmp_path):
  job, pods, _ = _manifest(
    tmp_path, "--name=big", "--image=i", "--tpu=t", "--topology=2x2", "--devices=4"
  )
  assert (
    job["parallelism"] == 1
    and "volumes" not in pods
    and "volumeMounts" not in pods["containers"][0]
  )


def test_the_longest_name(tmp_path):
  """<name>-hosts-0-<n> is a label of DNS, of 63 characters at most; a longer one is refused."""
  name = 53 * "n"
  _, pods, _ = _manifest(tmp_path, *_GPU, f"--name={name}", "--hosts=10")
  assert f"--coordinator={name}-hosts-0-0.{name}:8476" in pods["containers"][0]["args"][0]


def test_run_applies_what_the_dry_run_prints(tmp_path):
  fakes.recorder(tmp_path, "kubectl", 'cat >"$CALLS.stdin"\n')
  done = fakes.launch(tmp_path, "gke.sh", "run", *_GPU, *_TRAINING)
  assert done.returncode == 0, done.stderr
  assert fakes.calls(tmp_path) == [["kubectl", "apply", "-f", "-"]]
  assert (tmp_path / "calls.stdin").read_text() == _MANIFEST


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    (
      ("run", *_XPK, "--project=p", "--tpu=v5litepod-16", "--image=i", "--restarts=0", *_TRAINING),
      "xpk workload create --workload=big --cluster=c --zone=z --project=p "
      "--tpu-type=v5litepod-16 --docker-image=i "
      "--max-restarts=0 '--command=python -m experiments.train --distributed=auto "
      "--workdir=/mnt/runs/r "
      "--mesh=data:-1,fsdp:4 '\\''--note=it'\\''\\'\\'''\\''s'\\'''",
    ),
    (("delete", *_XPK, "--yes"), "xpk workload delete --workload=big --cluster=c --zone=z --force"),
    (
      ("logs", "--name=big", "--namespace=n"),
      "kubectl --namespace=n logs --selector=jobset.sigs.k8s.io/jobset-name=big,"
      "batch.kubernetes.io/job-completion-index=0 --follow --prefix --tail=-1 "
      "--max-log-requests=100",
    ),
    (
      ("logs", *_XPK, "--worker=all"),
      (
        "kubectl logs --selector=jobset.sigs.k8s.io/jobset-name=big --follow --prefix --tail=-1 "
        "--max-log-requests=100"
      ),
    ),
    (
      ("stop", "--name=big"),
      """kubectl patch jobset big --type=merge '--patch={"spec":{"suspend":true}}'""",
    ),
    (("delete", "--name=big", "--yes"), "kubectl delete jobset big"),
  ],
  ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_dry_run_and_what_is_run(words, expected, tmp_path):
  for name in ("kubectl", "xpk"):
    fakes.recorder(tmp_path, name)
  before = words.index("--") if "--" in words else len(words)
  dry = fakes.launch(tmp_path, "gke.sh", *words[:before], "--dry-run", *words[before:])
  assert (dry.returncode, dry.stdout, dry.stderr) == (0, f"{expected}\n", "")
  assert fakes.calls(tmp_path) == []
  assert fakes.launch(tmp_path, "gke.sh", *words).returncode == 0
  assert fakes.calls(tmp_path) == fakes.printed(expected)


@pytest.mark.parametrize(("answer", "deleted"), [("", False), ("no\n", False), ("y\n", True)])
def test_delete_asks(answer, deleted, tmp_path):
  fakes.recorder(tmp_path, "kubectl")
  done = fakes.launch(tmp_path, "gke.sh", "delete", "--name=big", stdin=answer)
  assert "delete the job big?" in done.stderr
  assert (done.returncode == 0, len(fakes.calls(tmp_path)) == 1) == (deleted, deleted)
