"""Alerts and dashboard ask only for figures that a part defines, by labels that it has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from instructzero.contracts import JobStatus
from tests.deploy.compose import ROOT

FILES = ROOT / "deploy" / "helm" / "files"
MODULES = (
    "services.web",
    "services.optimizer.meters",
    "services.scorer.meters",
    "services.generator.meters",
)
ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
UNITS = ("seconds", "usd", "tokens", "jobs", "calls", "leases", "slots", "requests", "answers",
         "instructions", "evaluations", "faults", "failed", "claimed", "left", "lost", "hand",
         "prompts", "lookups", "up", "score", "improvement", "doubt")  # fmt: skip


def meters() -> dict[str, MetricWrapperBase]:
    found = {}
    for module in map(import_module, MODULES):
        for value in vars(module).values():
            if isinstance(value, MetricWrapperBase):
                found[value._name] = value
    return found


METERS = meters()


def known_labels(name: str) -> set[str]:
    """The labels of a series by its name; fails if no part has it."""
    for base, meter in METERS.items():
        for ending in ENDINGS[meter._type]:
            if name == f"{base}{ending}":
                return {*meter._labelnames, *(["le"] if ending == "_bucket" else [])}
    raise AssertionError(f"no part has the figure {name}")


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """Every series that a query asks for."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from selectors(node.vector_selector)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from selectors(node.lhs)
        yield from selectors(node.rhs)
    elif isinstance(node, promql_parser.AggregateExpr | promql_parser.ParenExpr):
        yield from selectors(node.expr)


def check(query: str) -> None:
    found = list(selectors(promql_parser.parse(query)))
    assert found, query
    labels = set()
    for series in found:
        labels = known_labels(series.name)
        for matcher in series.matchers.matchers:
            assert matcher.name in labels, (series.name, matcher.name)
            if matcher.name == "status" and series.name == "instructzero_jobs_left_total":
                assert set(matcher.value.split("|")) <= set(JobStatus)
    for group in re.findall(r"by \(([^)]+)\)", query):
        assert {each.strip() for each in group.split(",")} <= labels, query


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads((FILES / "dashboard.json").read_text())["panels"])


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_asks_for_figures_that_are_there_and_has_its_page(alert):
    check(alert["expr"])
    assert alert["labels"]["severity"] in {"critical", "warning"}
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^### (\S+)$", (ROOT / page).read_text(), flags=re.M)
    assert anchor in {heading.lower() for heading in headings}
    assert anchor == alert["alert"].lower()


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_asks_for_figures_that_are_there(panel):
    for target in panel["targets"]:
        check(target["expr"])


def test_every_page_of_an_alert_is_about_one_that_exists():
    text = (ROOT / "docs" / "operations.md").read_text()
    pages = set(re.findall(r"^### (InstructZero\S+)$", text, flags=re.M))
    assert pages == {alert["alert"] for alert in alerts()}


def test_the_dashboard_shows_every_figure():
    shown = json.dumps(panels())
    missing = [name for name in METERS if name not in shown and name != "instructzero_database_up"]
    assert not missing


@pytest.mark.parametrize("name", METERS)
def test_a_figure_is_named_by_its_unit_and_its_labels_are_bounded(name):
    assert name.startswith("instructzero_")
    assert any(unit in name.split("_") for unit in UNITS), name
    assert set(METERS[name]._labelnames) <= {
        "method", "route", "status", "part", "outcome", "target", "kind", "reason",
    }  # fmt: skip
