from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from services.cli import app
from services.optimizer.auth import digest_of
from services.scorer.targets import load_targets
from tests.deploy.compose import FILE, ROOT, containers, read_compose
from tests.deploy.variables import option_variables, settings_variables

CONTAINERS = containers()
OURS = {name: each for name, each in CONTAINERS.items() if each.is_ours}
SERVING = {name: each for name, each in OURS.items() if name != "migrate"}


def test_the_file_meets_the_compose_specification():
    done = subprocess.run(
        [Path(sys.executable).with_name("check-jsonschema"),
         "--builtin-schema", "vendor.compose-spec", FILE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_every_part_of_the_design_is_there():
    assert set(CONTAINERS) == {
        "postgres", "redis", "migrate", "api", "runner", "scorer", "generator", "generator-gpu",
        "demo-target",
    }  # fmt: skip
    assert CONTAINERS["runner"].content["deploy"]["replicas"] == 2
    assert CONTAINERS["scorer"].content["deploy"]["replicas"] == 2
    profiles = {name: each.content.get("profiles") for name, each in CONTAINERS.items()}
    assert {name for name, profile in profiles.items() if profile} == {"generator-gpu"}
    assert profiles["generator-gpu"] == ["gpu"]


@pytest.mark.parametrize("container", OURS.values(), ids=OURS)
def test_each_variable_is_read_by_the_command_that_gets_it(container):
    command = container.command[0]
    known = option_variables(command) | settings_variables(command)
    assert set(container.environment) <= known
    assert {name.upper() for name in container.secrets} <= settings_variables(command)


@pytest.mark.parametrize("container", OURS.values(), ids=OURS)
def test_each_command_exists_with_its_options(container):
    name, *options = container.command
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(options), resilient_parsing=True)
    assert not command.make_context(name, list(options), resilient_parsing=True).args


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_each_container_is_bounded_and_has_no_rights(container):
    content = container.content
    limits = content["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert content["cap_drop"] == ["ALL"]
    assert "cap_add" not in content
    assert content["read_only"] is True
    assert content["security_opt"] == ["no-new-privileges:true"]
    assert not content.get("privileged")
    if not container.is_ours:  # our images set a user themselves
        assert content["user"] not in {"root", "0", None}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_each_container_that_stays_is_asked_for_its_health(container):
    check = container.content["healthcheck"]
    if container.name == "migrate":
        assert check == {"disable": True}
        assert container.content["restart"] == "no"
        return
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(check)
    if container.is_ours:
        port = next(v for k, v in container.environment.items() if k.endswith("PORT"))
        assert f"http://127.0.0.1:{port}/healthz" in check["test"][-1]


def test_images_of_others_are_pinned_by_tag_and_digest():
    for each in CONTAINERS.values():
        image = each.content["image"]
        if each.is_ours:
            assert image.endswith(":0.1.0")
            assert (
                (ROOT / each.content["build"]["dockerfile"]).exists()
                if ("build" in each.content)
                else image in {other.content["image"] for other in OURS.values()}
            )
        else:
            assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?@sha256:[0-9a-f]{64}", image)


def test_ports_are_bound_to_loopback():
    published = [port for each in CONTAINERS.values() for port in each.content.get("ports", ())]
    assert published == ["127.0.0.1:8080:8080"]


def test_only_what_must_reaches_the_outside():
    networks = read_compose()["networks"]
    inner = {name for name, options in networks.items() if options and options.get("internal")}
    outside = {name for name, each in CONTAINERS.items() if set(each.content["networks"]) - inner}
    assert outside == {"api", "scorer", "generator-gpu", "demo-target"}


def test_the_order_is_by_health():
    for each in CONTAINERS.values():
        for other, how in each.content.get("depends_on", {}).items():
            assert other in CONTAINERS
            if how["condition"] == "service_healthy":
                assert "test" in CONTAINERS[other].content["healthcheck"]
    for name in ("api", "runner"):
        waits = CONTAINERS[name].content["depends_on"]
        assert waits["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("container", SERVING.values(), ids=SERVING)
def test_a_part_is_given_longer_to_stop_than_it_takes_to_drain(container):
    grace = container.content.get("stop_grace_period", "10s")
    drain = {"scorer": 60, "generator": 60, "serve": 20, "runner": 60, "demo-target": 0}
    assert int(grace.removesuffix("s")) > drain[container.command[0]]


def test_secrets_lie_in_files_and_fit_together():
    known = {name: each["file"] for name, each in read_compose()["secrets"].items()}
    values = {name: (FILE.parent / path).read_text().strip() for name, path in known.items()}
    assert f":{values['postgres_password']}@postgres:5432/" in values["database_url"]
    assert digest_of("compose-demo-key") in values["api_key_hashes"]
    for each in CONTAINERS.values():
        shown = str(each.environment) + str(each.command)
        assert not any(value in shown for value in values.values())


def test_the_targets_file_names_the_demo_target():
    targets = load_targets(ROOT / "deploy" / "targets.yaml")
    assert [target.config.base_url for target in targets] == ["http://demo-target:9001/v1"]
