"""JSON schemas of the custom resources that the chart uses; unknown fields are refused.

Written from the operators' reference pages and types; pods inside are checked as pods by whoever
uses these.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY: Schema = {"type": "object"}


def record(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
    }


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    return record(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=record(("name",), name=TEXT, labels=TEXTS, annotations=TEXTS),
        spec=spec,
    )


TEMPLATE = record(("spec",), metadata=record(labels=TEXTS, annotations=TEXTS), spec=ANY)
HEAD = record(
    ("template", "rayStartParams"),
    template=TEMPLATE,
    rayStartParams=TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    headService=ANY,
    enableIngress=FLAG,
)
WORKERS = record(
    ("groupName", "template", "maxReplicas", "minReplicas", "rayStartParams"),
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    numOfHosts=NUMBER,
    idleTimeoutSeconds=NUMBER,
    suspend=FLAG,
    rayStartParams=TEXTS,
    scaleStrategy=record(workersToDelete={"type": "array", "items": TEXT}),
    template=TEMPLATE,
)
AUTOSCALER = record(
    resources=ANY,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=ANY,
    idleTimeoutSeconds=NUMBER,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env={"type": "array", "items": ANY},
    envFrom={"type": "array", "items": ANY},
    volumeMounts={"type": "array", "items": ANY},
)
CLUSTER = record(
    ("headGroupSpec",),
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    gcsFaultToleranceOptions=record(
        ("redisAddress",),
        redisAddress=TEXT,
        redisUsername=ANY,
        redisPassword=ANY,
        externalStorageNamespace=TEXT,
    ),
    headServiceAnnotations=TEXTS,
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    suspend=FLAG,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_SERVICE = resource(  # KubeRay 1.4, the oldest with all the chart uses; later ones only add
    "ray.io/v1",
    "RayService",
    record(
        ("rayClusterConfig",),
        serveConfigV2=TEXT,
        rayClusterConfig=CLUSTER,
        upgradeStrategy=record(type={"enum": ["NewCluster", "None"]}),
        excludeHeadPodFromServeSvc=FLAG,
        serveService=ANY,
    ),
)
POD_MONITOR = resource(
    "monitoring.coreos.com/v1",
    "PodMonitor",
    record(
        ("selector", "podMetricsEndpoints"),
        selector=record(matchLabels=TEXTS),
        podMetricsEndpoints={
            "type": "array",
            "items": record(
                port=TEXT,
                path=TEXT,
                interval={"type": "string", "pattern": r"^\d+[smh]$"},
                authorization=record(
                    type=TEXT, credentials=record(("name", "key"), name=TEXT, key=TEXT)
                ),
            ),
        },
    ),
)
PROMETHEUS_RULE = resource(
    "monitoring.coreos.com/v1",
    "PrometheusRule",
    record(
        ("groups",),
        groups={
            "type": "array",
            "items": record(
                ("name", "rules"),
                name=TEXT,
                interval=TEXT,
                rules={
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["alert", "expr", "labels", "annotations"],
                        "properties": {
                            "alert": TEXT,
                            "expr": TEXT,
                            "for": {"type": "string", "pattern": r"^\d+[smh]$"},
                            "labels": TEXTS,
                            "annotations": TEXTS,
                        },
                    },
                },
            ),
        },
    ),
)
SCHEMAS = {
    "RayService": RAY_SERVICE,
    "PodMonitor": POD_MONITOR,
    "PrometheusRule": PROMETHEUS_RULE,
}
