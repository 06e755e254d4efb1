"""The Kubernetes manifest says what node.env, cluster.yaml and Ray's schema say, so that it cannot
fall behind them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from fakes import nodes
from tokenreward import __version__
from tokenreward.config import load_settings
from tokenreward.deployment.plan import serve_config

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICE, POLICY = yaml.safe_load_all((DEPLOY / "rayservice.yaml").read_text(encoding="utf-8"))
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
HEAD, (WORKERS, GPUS) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
PODS = pytest.mark.parametrize("group", [HEAD, WORKERS, GPUS], ids=["head", "workers", "gpus"])
SETTINGS = load_settings(DEPLOY / "cluster.yaml")


def container(group: Any) -> Any:
    (only,) = group["template"]["spec"]["containers"]
    return only


@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
def test_serve_config_is_the_plan_of_the_config_beside_it() -> None:
    config = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    assert config == json.loads(json.dumps(serve_config(SETTINGS)))
    assert (
        len(ServeDeploySchema.model_validate(config).applications)
        == 1 + len(SETTINGS.deployments)
        == 3
    )


@PODS
def test_every_pod_has_the_nodes_environment(group: Any) -> None:
    assert {
        entry["name"]: entry["value"] for entry in container(group)["env"]
    } == nodes.environment()
    assert len(container(group)["env"]) == len(nodes.environment())


@PODS
def test_every_pod_can_read_the_keys_and_has_shared_memory_for_the_object_store(group: Any) -> None:
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    places = {
        mount["mountPath"]: volumes[mount["name"]] for mount in container(group)["volumeMounts"]
    }
    assert places["/dev/shm"]["emptyDir"]["medium"] == "Memory"  # noqa: S108 - a mount
    assert int(group["rayStartParams"]["object-store-memory"]) < 2**30
    assert places["/dev/shm"]["emptyDir"]["sizeLimit"] == "1Gi"  # noqa: S108
    assert SETTINGS.api_keys_file is not None
    assert "secret" in places[str(SETTINGS.api_keys_file.parent)]


def test_the_head_serves_nobody_and_the_workers_have_room_for_every_replica() -> None:
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert SERVICE["spec"]["excludeHeadPodFromServeSvc"] is True
    gateways = SETTINGS.gateway_num_replicas * SETTINGS.gateway_num_cpus
    fewest = {d.name: d.autoscaling.min_replicas for d in SETTINGS.deployments if d.autoscaling}
    least = gateways + sum(
        fewest.get(d.name, d.num_replicas) * d.num_cpus for d in SETTINGS.deployments
    )
    most = gateways + sum(d.max_replicas * d.num_cpus for d in SETTINGS.deployments)
    num_cpus = int(container(WORKERS)["resources"]["limits"]["cpu"])
    assert WORKERS["minReplicas"] * num_cpus >= least
    assert WORKERS["maxReplicas"] * num_cpus >= most > least
    assert WORKERS["minReplicas"] >= SETTINGS.gateway_num_replicas  # each on a node of its own


def test_pods_come_when_replicas_need_them() -> None:
    assert CLUSTER["enableInTreeAutoscaling"] is True
    for group in (WORKERS, GPUS):
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    assert (GPUS["minReplicas"], container(GPUS)["resources"]["limits"]["nvidia.com/gpu"]) == (
        0,
        "1",
    )


def test_pods_are_probed_over_http_because_the_image_has_no_wget() -> None:
    for group in (HEAD, WORKERS, GPUS):
        for probe in ("livenessProbe", "readinessProbe"):
            assert set(container(group)[probe]) & {"exec", "httpGet", "tcpSocket"} == {"httpGet"}
    assert container(WORKERS)["readinessProbe"]["httpGet"] == {
        "path": "/-/healthz",
        "port": SETTINGS.port,
    }


def test_replicas_of_other_nodes_can_be_reached() -> None:
    assert SETTINGS.host == "0.0.0.0"  # noqa: S104 - compared, not bound


def test_versions_are_those_that_are_installed_and_ours() -> None:
    assert CLUSTER["rayVersion"] == ray.__version__ == pinned("ray")
    assert container(HEAD)["image"] == container(WORKERS)["image"] == f"tokenreward:{__version__}"


def pinned(package: str) -> str:
    constraints = (DEPLOY.parent / "constraints.txt").read_text(encoding="utf-8")
    match = re.search(rf"^{package}(\[\w+\])?==(\S+)", constraints, flags=re.MULTILINE)
    assert match is not None
    return match.group(2)


def test_others_reach_http_alone() -> None:
    labels = POLICY["spec"]["podSelector"]["matchLabels"]
    for group in (HEAD, WORKERS, GPUS):
        assert labels.items() <= group["template"]["metadata"]["labels"].items()
    to_all = [rule["ports"] for rule in POLICY["spec"]["ingress"] if "from" not in rule]
    assert to_all == [[{"port": SETTINGS.port, "protocol": "TCP"}]]
