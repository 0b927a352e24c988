"""The resources of launch/kubernetes: valid by Kubernetes' schemas, and of one mind."""

import re

import pytest

from tests.launch import fakes

yaml = pytest.importorskip("yaml", reason="it comes with the dev extra")
kubernetes_validate = pytest.importorskip(
  "kubernetes_validate", reason="it comes with the dev extra"
)

_FOLDER = fakes.ROOT / "launch" / "kubernetes"
_FILES = sorted(path.name for path in _FOLDER.iterdir())


def _resources(name):
  return list(yaml.safe_load_all((_FOLDER / name).read_text(encoding="utf-8")))


def _all():
  return [resource for name in _FILES for resource in _resources(name)]


def test_all_are_here():
  assert _FILES == ["learner.yaml", "proposer.yaml", "redis.yaml", "server.yaml", "storage.yaml"]


@pytest.mark.parametrize("name", _FILES)
def test_schemas_accept_them(name):
  for resource in _resources(name):
    latest = kubernetes_validate.latest_version()
    used = kubernetes_validate.validate(resource, latest, strict=True)
    assert latest.startswith(used)  # 1.37 of 1.37.0


def test_schemas_would_notice():
  (deployment,) = _resources("learner.yaml")
  deployment["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)


def _pods():
  return [
    (resource["metadata"]["name"], resource["spec"]["template"])
    for resource in _all()
    if resource["kind"] in ("Deployment", "StatefulSet")
  ]


def test_selectors_find_what_they_are_for():
  labels = {name: template["metadata"]["labels"] for name, template in _pods()}
  for resource in _all():
    spec = resource["spec"]
    wanted = spec.get("selector") or spec.get("podSelector")
    if wanted is None:
      continue
    wanted = wanted.get("matchLabels", wanted)
    assert any(wanted.items() <= own.items() for own in labels.values()), resource["kind"]


def test_all_write_to_one_stream_and_volumes_are_there():
  streams = set()
  for _, template in _pods():
    spec = template["spec"]
    for container in spec["containers"]:
      streams |= {arg for arg in container["args"] if arg.startswith("--stream=")}
      mounted = {mount["name"] for mount in container["volumeMounts"]}
      there = {volume["name"] for volume in spec.get("volumes", [])} | {"data"}
      assert mounted <= there
  assert streams == {"--stream=redis://gr4ad-redis:6379/gr4ad"}


def test_the_commands_are_binaries_of_this_repository():
  found = set(re.findall(r"experiments\.(\w+)", "".join((_FOLDER / n).read_text() for n in _FILES)))
  assert found == {"serve", "learn", "propose"}
  assert all((fakes.ROOT / "experiments" / f"{name}.py").is_file() for name in found)


def test_a_rolling_update_never_takes_a_server_away_first():
  (server,) = (r for r in _resources("server.yaml") if r["kind"] == "Deployment")
  assert server["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
  pod = server["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
  assert pause + 8 < pod["terminationGracePeriodSeconds"]  # the server's own grace: 8 s
  assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
