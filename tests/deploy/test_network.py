"""The network policies let pass exactly the flows of the table in docs/operations.md."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.deploy.chart import pods, render
from tests.deploy.compose import ROOT
from tests.deploy.flows import Node, is_allowed

PORTS = (22, 53, 80, 443, 5432, 6379, 8001, 8002, 8003, 8080, 8265, 9001, 10001)
OUTSIDE = Node("outside", address="203.0.113.7")
METADATA = Node("metadata", address="169.254.169.254")
STRANGERS = (
    OUTSIDE,
    Node("neighbour", {"app": "another"}),
    Node("monitoring", namespace="monitoring"),
    Node("kuberay", namespace="kuberay-system"),
)
WHEN = {
    "default": {"always", "the database is external", "Redis is external", "targets are external",
                "on a CPU"},
    "gpu": {"always", "the database is external", "Redis is external", "targets are external",
            "rayService"},
    "minimal": {"always", "on a CPU", "development"},
}  # fmt: skip


class Flow(NamedTuple):
    caller: str
    called: str
    port: int


def table(when: set[str], parts: set[str]) -> set[Flow]:
    """The rows of the table that hold, one flow a port and a pair."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.split("### Who may talk to whom")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if re.match(r"\| [a-z]", line) and not line.startswith("| from ")
    ]
    assert len(rows) > 20
    found = set()
    for caller, called, port, condition in rows:
        if condition.partition(" (")[0] not in when:
            continue
        callers = {"anybody": [each.name for each in STRANGERS], "every part": sorted(parts)}
        for name in callers.get(caller, [caller]):
            for number in PORTS if port == "any" else (int(port),):
                found.add(Flow(name, called, number))
    return found


def nodes(name: str) -> list[Node]:
    found = [
        Node(
            part,
            pod["metadata"]["labels"],
            ports={
                port["name"]: str(port["containerPort"])
                for port in pod["spec"]["containers"][0].get("ports", ())
            },
        )
        for part, pod in pods(name).items()
    ]
    for each in render(name):
        if each["kind"] == "RayService":
            labels = each["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]
            found.append(Node("generator", labels["labels"], ports={"serve": "8001"}))
    return found


@pytest.mark.parametrize("name", WHEN)
def test_the_table_of_flows_is_what_the_policies_let_pass(name):
    policies = [each for each in render(name) if each["kind"] == "NetworkPolicy"]
    parts = nodes(name)
    passes = {
        Flow(caller.name, called.name, port)
        for caller in (*parts, *STRANGERS)
        for called in (*parts, OUTSIDE)
        for port in PORTS
        if (caller is not called or caller.name == "generator")
        and not (caller in STRANGERS and called is OUTSIDE)
        and is_allowed(policies, caller, called, port)
    }
    # Names are asked of whoever answers on port 53; no part of ours does.
    passes = {flow for flow in passes if flow.port != 53 or flow.called in {"outside", flow.caller}}
    if name != "gpu":
        passes = {flow for flow in passes if flow.caller != flow.called}
    wanted = table(WHEN[name], {part.name for part in parts})
    assert passes - wanted == set(), "policies let pass what the table does not say"
    assert wanted - passes == set(), "the table says what policies do not let pass"


@pytest.mark.parametrize("name", WHEN)
def test_nobody_reaches_the_metadata_address(name):
    policies = [each for each in render(name) if each["kind"] == "NetworkPolicy"]
    for part in nodes(name):
        assert not is_allowed(policies, part, METADATA, 80)
        assert not is_allowed(policies, part, METADATA, 443)


def test_the_api_can_be_narrowed_to_some():
    policies = [each for each in render("ha") if each["kind"] == "NetworkPolicy"]
    (api,) = [each for each in nodes("ha") if each.name == "api"]
    stranger = Node("stranger", {"app": "another"})
    assert not is_allowed(policies, stranger, api, 8080)
    assert not is_allowed(policies, OUTSIDE, api, 8080)
