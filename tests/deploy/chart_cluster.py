"""The chart's development release as processes: one of each part, with what its pod gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.deploy.chart import Manifest, pods, render
from tests.deploy.cluster import Cluster, Start
from tests.faults.system import free_port

PARTS = ("scorer", "generator", "demo-target", "api", "runner")
RELEASE = "minimal"
NAME = "iz-instructzero"


def chart_cluster(folder: Path, *, database_url: str, redis_url: str) -> Cluster:
    """Prepare every container; nothing runs yet."""
    (secret,) = [each["stringData"] for each in render(RELEASE) if each["kind"] == "Secret"]
    secret = secret | {"database-url": database_url, "redis-url": redis_url}
    cluster = Cluster(folder, secret["api-key"])
    ports = {part: free_port() for part in PARTS}
    places = {
        f"{NAME}-{each['metadata']['labels']['app.kubernetes.io/component']}:{port['port']}": (
            f"127.0.0.1:{ports[part]}"
        )
        for each in render(RELEASE)
        if each["kind"] == "Service"
        for port in each["spec"]["ports"]
        if (part := each["metadata"]["labels"]["app.kubernetes.io/component"]) in ports
    }
    targets = folder / "targets.yaml"
    targets.write_text(_local(_targets(), places))
    places["/etc/instructzero/targets.yaml"] = str(targets)
    for part in ("migrate", *PARTS):
        cluster.add(_start(part, pods(RELEASE)[part], ports.get(part, 0), places, secret))
    return cluster


def _targets() -> str:
    (found,) = [
        each["data"]["targets.yaml"] for each in render(RELEASE)
        if each["kind"] == "ConfigMap" and "targets.yaml" in each["data"]
    ]  # fmt: skip
    return str(found)


def _start(
    part: str, pod: Manifest, port: int, places: dict[str, str], secret: dict[str, str]
) -> Start:
    (container,) = pod["spec"]["containers"]
    environment = {entry["name"]: _value(entry, secret, places) for entry in container["env"]}
    for name in environment:
        if name.endswith("PORT"):
            environment[name] = str(port)
    return Start(
        name=part,
        image=str(container["image"]).removeprefix("instructzero-").partition(":")[0],
        command=tuple(container["args"]),
        environment=environment,
        secrets={},
        grace_seconds=float(pod["spec"].get("terminationGracePeriodSeconds", 30)),
    )


def _value(entry: dict[str, Any], secret: dict[str, str], places: dict[str, str]) -> str:
    if "value" in entry:
        return _local(str(entry["value"]), places)
    return secret[entry["valueFrom"]["secretKeyRef"]["key"]]


def _local(text: str, places: dict[str, str]) -> str:
    for there, here in places.items():
        text = text.replace(there, here)
    return text
