"""The chart rendered offline for the value sets that we promise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.deploy.compose import ROOT

helm = pytest.importorskip("helm_python", reason="helm-python-sdk has no wheel for this machine")
CHART = ROOT / "deploy" / "helm"
Manifest = dict[str, Any]

TARGETS = {
    "targets": {
        "gpt-small": {
            "base_url": "https://api.example.com/v1",
            "model": "gpt-small-2025",
            "api_key": {"env": "PROVIDER_KEY"},
            "limits": {"requests_per_minute": 600, "in_flight": 32},
        }
    }
}
REQUIRED: dict[str, Any] = {
    "database": {"existingSecret": "iz-database"},
    "redis": {"existingSecret": "iz-redis"},
    "auth": {"existingSecret": "iz-auth"},
    "targets": {"config": TARGETS, "keysSecret": "provider-keys"},
}
VALUES: dict[str, dict[str, Any]] = {
    "default": REQUIRED,
    "gpu": REQUIRED
    | {
        "generator": {"mode": "rayService", "hubTokenSecret": "hub"},
        "image": {"registry": "images.example.com/ml", "pullSecrets": ["pull"]},
    },
    "external": REQUIRED
    | {
        "generator": {"mode": "external", "url": "https://generator.example.com"},
        "database": {"existingSecret": "managed-postgres", "key": "uri", "port": 6432},
        "redis": {"existingSecret": "managed-redis", "key": "uri", "port": 6380},
    },
    "ha": REQUIRED
    | {
        "api": {
            "replicas": 3,
            "autoscaling": {"enabled": True},
            "nodeSelector": {"pool": "web"},
            "tolerations": [{"key": "web", "operator": "Exists"}],
        },
        "runner": {"autoscaling": {"enabled": True, "min": 3, "max": 40}},
        "scorer": {"autoscaling": {"enabled": True, "min": 3}},
        "generator": {"replicas": 2, "model": "Qwen/Qwen2.5-0.5B-Instruct"},
        "networkPolicy": {"apiFrom": [{"namespaceSelector": {"matchLabels": {"team": "search"}}}]},
        "monitoring": {
            "podMonitors": True,
            "rules": True,
            "dashboard": True,
            "apiKeySecret": "prometheus-key",
            "labels": {"release": "prometheus"},
        },
    },
    "minimal": {"development": {"enabled": True}},
    "bare": REQUIRED
    | {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "migrations": {"enabled": False},
        "fullnameOverride": "finder",
    },
}


@cache
def render(name: str) -> tuple[Manifest, ...]:
    """Every manifest of a value set, tests and hooks included."""
    return tuple(render_values(VALUES[name]))


def render_values(values: dict[str, Any]) -> Iterator[Manifest]:
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="iz", namespace="search", is_install=True)
    for path, text in files.items():
        if not path.endswith(".txt"):
            yield from (each for each in yaml.safe_load_all(text) if each)


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod that a manifest makes, None if it makes none."""
    if manifest["kind"] == "Pod":
        return manifest
    template: Manifest | None = manifest.get("spec", {}).get("template")
    return template if isinstance(template, dict) and "spec" in template else None


def pods(name: str) -> dict[str, Manifest]:
    """The pods of a value set by component; a RayService's are not among them."""
    found = {}
    for manifest in render(name):
        pod = pod_of(manifest)
        if pod is not None:
            found[pod["metadata"]["labels"]["app.kubernetes.io/component"]] = pod
    return found
