from __future__ import annotations

import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from services.generator.serve_config import ServeArgs
from services.scorer.targets import Targets
from tests.deploy.chart import CHART, REQUIRED, VALUES, helm, pod_of, pods, render, render_values
from tests.deploy.custom_resources import SCHEMAS
from tests.deploy.variables import option_variables, settings_variables

KUBERNETES = ("1.30", "1.37")
COMMANDS = {
    "api": "serve",
    "runner": "runner",
    "scorer": "scorer",
    "generator": "generator",
    "migrate": "migrate",
    "demo-target": "demo-target",
}
ALL_PODS = [(name, part) for name in VALUES for part in pods(name)]


def test_a_linter_finds_no_fault():
    found = helm.lint(str(CHART), values={"development": {"enabled": True}})
    assert not found["errors"]
    worst = {message["severity"] for message in found["messages"]}
    assert worst <= {1}, found  # 1: an icon would be nice


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", VALUES)
def test_every_manifest_is_one_that_kubernetes_takes(name, version):
    for manifest in render(name):
        if manifest["kind"] in SCHEMAS:
            jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_names_are_unique_and_selectors_meet_pods(name):
    manifests = render(name)
    keys = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(keys)) == len(keys)
    labels = [pod["metadata"]["labels"] for pod in pods(name).values()]
    for each in manifests:
        if each["kind"] == "Service":
            wanted = each["spec"]["selector"].items()
            assert any(wanted <= found.items() for found in labels), each["metadata"]["name"]


@pytest.mark.parametrize(("name", "part"), ALL_PODS)
def test_every_pod_is_bounded_and_has_no_rights(name, part):
    spec = pods(name)[part]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    if part not in {"migrate", "test"}:
        assert {"readinessProbe", "livenessProbe"} <= set(container)


@pytest.mark.parametrize(("name", "part"), [pair for pair in ALL_PODS if pair[1] in COMMANDS])
def test_every_variable_is_read_by_the_command_that_gets_it(name, part):
    (container,) = pods(name)[part]["spec"]["containers"]
    assert container["args"][0] == COMMANDS[part]
    known = option_variables(COMMANDS[part]) | settings_variables(COMMANDS[part])
    given = {entry["name"] for entry in container["env"]}
    assert given <= known
    assert len(given) == len(container["env"])


@pytest.mark.parametrize("name", VALUES)
def test_no_secret_stands_in_a_manifest_of_an_installation_that_counts(name):
    kinds = [each["kind"] for each in render(name)]
    assert ("Secret" in kinds) is (name == "minimal")
    for pod in pods(name).values():
        for entry in pod["spec"]["containers"][0].get("env", ()):
            if re.search("TOKEN|PASSWORD|DATABASE_URL|REDIS_URL|HASHES", entry["name"]):
                assert "secretKeyRef" in entry["valueFrom"], entry["name"]


def test_the_development_secret_holds_what_the_parts_ask_for():
    (secret,) = [each for each in render("minimal") if each["kind"] == "Secret"]
    asked = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for pod in pods("minimal").values()
        for entry in pod["spec"]["containers"][0].get("env", ())
        if "valueFrom" in entry
    }
    assert asked <= set(secret["stringData"])


@pytest.mark.parametrize("name", ["default", "minimal"])
def test_the_scorer_can_read_its_targets(name):
    (config,) = [
        each for each in render(name)
        if each["kind"] == "ConfigMap" and "targets.yaml" in each["data"]
    ]  # fmt: skip
    content = yaml.safe_load(config["data"]["targets.yaml"])
    for target in content["targets"].values():
        target.pop("api_key", None)
    assert list(Targets.of(content))


def test_the_ray_service_is_one_that_ray_and_kuberay_take():
    schema = pytest.importorskip("ray.serve.schema")
    (service,) = [each for each in render("gpu") if each["kind"] == "RayService"]
    config = schema.ServeDeploySchema.model_validate(
        yaml.safe_load(service["spec"]["serveConfigV2"])
    )
    (application,) = config.applications
    assert application.import_path == "services.generator.serve_app:build"
    assert ServeArgs.model_validate(application.args).models[0].settings.engine == "vllm"
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod"} | group["template"]
        pod["metadata"] = {"name": "ray", **pod["metadata"]}
        kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)
        (container,) = pod["spec"]["containers"]
        given = {entry["name"] for entry in container["env"] if entry["name"].startswith("IZ_")}
        assert given <= settings_variables("generator")
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == config.http_options.port
    limits = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    assert limits["limits"]["nvidia.com/gpu"] == 1


def test_a_part_is_given_longer_to_stop_than_it_takes_to_drain():
    for part, seconds in {"runner": 60, "scorer": 60, "generator": 60, "api": 20}.items():
        assert pods("default")[part]["spec"]["terminationGracePeriodSeconds"] > seconds + 5


def test_migrations_come_before_the_new_pods():
    (job,) = [each for each in render("default") if each["kind"] == "Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert not [each for each in render("bare") if each["kind"] == "Job"]


def test_what_scales_by_itself_has_no_fixed_number():
    for each in render("ha"):
        if each["kind"] == "Deployment" and each["metadata"]["name"] != "iz-instructzero-generator":
            assert "replicas" not in each["spec"]
    scaled = [each for each in render("ha") if each["kind"] == "HorizontalPodAutoscaler"]
    metrics = [next(iter(each["spec"]["metrics"])) for each in scaled]
    assert {metric["type"] for metric in metrics} == {"Resource", "External", "Pods"}


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({}, "database.existingSecret is empty: make a Secret"),
    ({"database": {"existingSecret": "x"}}, "redis.existingSecret is empty"),
    (REQUIRED | {"targets": {"config": {}}}, "targets.config.targets is empty: register"),
    (REQUIRED | {"generator": {"mode": "external"}}, "generator.url is empty: give the address"),
    (REQUIRED | {"generator": {"url": "http://g"}}, "generator.mode is not external"),
    (REQUIRED | {"generator": {"mode": "gpu"}}, "/generator/mode"),
    (REQUIRED | {"generator": {"mode": "external", "url": "g:8001"}}, "/generator/url"),
    (REQUIRED | {"runner": {"replicas": -1}}, "/runner/replicas"),
    (REQUIRED | {"runner": {"replica": 3}}, "replica"),
    (REQUIRED | {"api": {"replicas": "three"}}, "/api/replicas"),
    (REQUIRED | {"scorer": {"terminationGracePeriodSeconds": 30}}, "charged as in doubt"),
    (REQUIRED | {"runner": {"autoscaling": {"min": 9, "max": 3}}}, "(9) is greater than"),
    (
        REQUIRED | {"targets": {"config": {"targets": {"t": {"api_key": "sk-canary-123"}}}}},
        "keys do not belong into values",
    ),
    (REQUIRED | {"monitoring": {"podMonitors": True}}, "monitoring.apiKeySecret is empty"),
    (REQUIRED | {"surprise": 1}, "surprise"),
]


@pytest.mark.parametrize(("values", "words"), HOSTILE, ids=[words for _, words in HOSTILE])
def test_values_that_cannot_work_are_refused_with_what_to_do(values, words):
    with pytest.raises(helm.HelmError) as caught:
        list(render_values(values))
    assert words in str(caught.value)
    assert "sk-canary-123" not in str(caught.value)


def test_every_default_is_described_by_the_schema_and_no_value_is_free():
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values, schema)

    def compare(known: dict[str, Any], given: dict[str, Any]) -> None:
        properties = known.get("properties")
        if properties is None or not given:  # free, or empty unless somebody fills it
            return
        assert set(given) | {"global"} == set(properties) | {"global"}
        assert known["additionalProperties"] is False
        for name, value in given.items():
            if isinstance(value, dict):
                compare(properties[name], value)

    compare(schema, values)


def test_pods_are_found_in_every_kind_that_makes_them():
    kinds = {each["kind"] for each in render("minimal") if pod_of(each) is not None}
    assert kinds == {"Deployment", "StatefulSet", "Job", "Pod"}
