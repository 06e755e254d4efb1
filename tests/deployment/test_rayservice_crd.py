"""The Kubernetes manifest against KubeRay's schema of a RayService: each field is one it has.

The schema is a megabyte of KubeRay's own. RAYSERVICE_CRD names the file, which is
helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml of a release. Without it the test is
skipped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

MANIFEST = Path(__file__).parents[2] / "deploy" / "rayservice.yaml"


def strict(schema: Any) -> Any:
    """The schema, which also refuses fields that it lacks: Kubernetes drops them silently."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(value) for name, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if (
        isinstance(schema.get("properties"), dict)
        and schema.get("type") == "object"
        and not is_open
    ):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.fixture(scope="module")
def problems() -> Any:
    path = os.environ.get("RAYSERVICE_CRD")
    if path is None:
        pytest.skip("RAYSERVICE_CRD names no file")
    crd = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    # Any metadata is Kubernetes's own: the schema says only that it is an object.
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema.Draft202012Validator(schema)

    def found(manifest: Any) -> list[str]:
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]

    return found


@pytest.fixture
def manifest() -> Any:
    service, _ = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    return service


def test_every_field_is_one_that_kuberay_has(problems: Any, manifest: Any) -> None:
    assert problems(manifest) == []


def test_a_field_that_kuberay_lacks_and_a_wrong_type_are_told(problems: Any, manifest: Any) -> None:
    cluster = manifest["spec"]["rayClusterConfig"]
    cluster["enableAutoscaling"] = True
    cluster["workerGroupSpecs"][0]["maxReplicas"] = "many"
    lines = problems(manifest)
    assert len(lines) == 2
    assert "'enableAutoscaling' was unexpected" in "".join(lines)
    assert "'many' is not of type 'integer'" in "".join(lines)
