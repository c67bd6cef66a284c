"""Which flows a set of NetworkPolicies lets pass, worked out as Kubernetes does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Node:
    """Somebody who calls or is called: a pod, or an address beyond the cluster."""

    name: str
    labels: Labels = field(default_factory=dict)
    namespace: str = "search"
    ports: Labels = field(default_factory=dict)
    """Names of ports and their numbers."""
    address: str | None = None
    """Set for an address beyond the cluster; no policy binds it."""


def _matches(selector: Mapping[str, Any], labels: Labels) -> bool:
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def _is_peer(peer: Mapping[str, Any], node: Node, namespace: str) -> bool:
    if "ipBlock" in peer:
        if node.address is None:
            return False
        address, block = ip_address(node.address), peer["ipBlock"]
        inside = address in ip_network(block["cidr"])
        return inside and not any(address in ip_network(no) for no in block.get("except", ()))
    if node.address is not None:
        return False
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": node.namespace}
        if not _matches(peer["namespaceSelector"], labels):
            return False
    elif node.namespace != namespace:
        return False
    return _matches(peer.get("podSelector", {}), node.labels)


def _passes(rule: Mapping[str, Any], side: str, other: Node, called: Node, port: int) -> bool:
    peers = rule.get(side)
    if peers and not any(_is_peer(peer, other, "search") for peer in peers):
        return False
    ports = rule.get("ports")
    if not ports:
        return True
    return any(
        (int(called.ports.get(str(entry["port"]), -1)) if isinstance(entry["port"], str)
         else entry["port"]) == port
        for entry in ports
    )  # fmt: skip


def is_allowed(
    policies: Iterable[Mapping[str, Any]], caller: Node, called: Node, port: int
) -> bool:
    """Whether a connection passes the caller's way out and the called one's way in."""
    for kind, side, bound, other in (
        ("Egress", "to", caller, called),
        ("Ingress", "from", called, caller),
    ):
        if bound.address is not None or bound.namespace != "search":
            continue
        chosen = [
            policy["spec"] for policy in policies
            if kind in policy["spec"]["policyTypes"]
            and _matches(policy["spec"]["podSelector"], bound.labels)
        ]  # fmt: skip
        rules = [rule for spec in chosen for rule in spec.get(kind.lower()) or ()]
        if chosen and not any(_passes(rule, side, other, called, port) for rule in rules):
            return False
    return True
