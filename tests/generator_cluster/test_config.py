"""The Serve configs that are shipped, and what their `args` refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from instructzero.errors import InvalidRequest
from tests.generator_cluster.cluster import needs_vllm

pytestmark = [
    needs_vllm,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),  # Ray's own
]
CONFIGS = sorted((Path(__file__).parents[2] / "deploy" / "serve").glob("*.yaml"))


def args_of(path: Path) -> dict[str, Any]:
    args: dict[str, Any] = yaml.safe_load(path.read_text())["applications"][0]["args"]
    return args


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_is_what_serve_and_the_application_take(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.serve.schema import ServeDeploySchema

    from services.generator.serve_app import ServeArgs, build

    content = yaml.safe_load(path.read_text())
    schema = ServeDeploySchema.model_validate(content)
    assert schema.applications[0].import_path == "services.generator.serve_app:build"
    assert schema.http_options.host == ServeArgs.model_validate(args_of(path)).host
    monkeypatch.setenv("IZ_GENERATOR_TOKEN", "t" * 40)
    assert build(args_of(path))._bound_deployment.name == "front"


def test_configs_are_shipped() -> None:
    assert {path.name for path in CONFIGS} == {"generator.yaml", "generator-cpu.yaml"}


def test_without_a_token_nothing_listens_beyond_the_machine() -> None:
    from services.generator.serve_app import ServeArgs, build

    path = next(path for path in CONFIGS if path.name == "generator.yaml")
    with pytest.raises(InvalidRequest, match="without a token"):
        build(ServeArgs.model_validate(args_of(path)))


def model(**changes: Any) -> dict[str, Any]:
    return {"name": "m", "settings": {"model": "owner/m"}, **changes}


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"models": []}, "at least 1"),
        ({"models": [model(), model()]}, "same name"),
        ({"models": [model(replicas={"min": 3, "max": 2})]}, "greater than max"),
        ({"models": [model(settings={"model": "m", "typo": 1})]}, "typo"),
        ({"models": [model(gpu=1)]}, "gpu"),
        ({"models": [model(name="no spaces")]}, "name"),
        ({"models": [model()], "front": 2}, "front"),
    ],
)
def test_a_wrong_config_names_what_is_wrong(args: dict[str, Any], word: str) -> None:
    from services.generator.serve_config import ServeArgs

    with pytest.raises(ValidationError, match=word):
        ServeArgs.model_validate(args)


def test_a_model_takes_as_many_gpus_as_share_it_and_none_on_a_cpu() -> None:
    from services.generator.serve_config import ServedModel

    shared = model(settings={"model": "m", "tensor_parallel": 4})
    assert ServedModel.model_validate(shared).n_gpus == 4
    assert ServedModel.model_validate({**shared, "gpus": 2}).n_gpus == 2
    on_cpu = model(settings={"model": "m", "device": "cpu"})
    assert ServedModel.model_validate(on_cpu).n_gpus == 0


def test_the_number_of_copies_follows_the_load_between_its_bounds() -> None:
    from services.generator.serve_app import build

    bounds = {"min": 2, "max": 5, "target_requests": 3}
    args = {"models": [model(replicas=bounds), {**model(), "name": "n"}], "host": "127.0.0.1"}
    models, _, _ = build(args)._bound_deployment.init_args
    scaled = models["m"]._bound_deployment._deployment_config
    assert scaled.autoscaling_config.min_replicas == 2
    assert scaled.autoscaling_config.max_replicas == 5
    assert scaled.autoscaling_config.target_ongoing_requests == 3
    fixed = models["n"]._bound_deployment._deployment_config
    assert (fixed.num_replicas, fixed.autoscaling_config) == (1, None)


def test_no_token_travels_with_the_settings_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.generator.serve_app import ServeArgs, build

    monkeypatch.setenv("IZ_GENERATOR_TOKEN", "canary-" + "t" * 30)
    args = ServeArgs.model_validate({"models": [model()], "host": "127.0.0.1"})
    assert isinstance(args.models[0].settings.token, SecretStr)
    models, _, _ = build(args)._bound_deployment.init_args
    settings, _ = models["m"]._bound_deployment.init_args
    assert settings.token is None
    assert settings.served_name == "m"
