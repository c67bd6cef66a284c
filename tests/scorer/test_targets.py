from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instructzero.errors import InvalidRequest, UnknownTarget
from services.scorer.targets import Targets, load_targets

CANARY = "sk-canary-0123456789"


def content(**changes: Any) -> dict[str, Any]:
    return {"targets": {"demo": {"base_url": "http://127.0.0.1:9001/v1", "model": "m", **changes}}}


def test_the_documented_file_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_KEY", CANARY)
    file = tmp_path / "targets.yaml"
    file.write_text(
        """
targets:
  demo:
    base_url: http://127.0.0.1:9001/v1/
    model: demo
    api_key: {env: DEMO_KEY}
    limits: {requests_per_minute: 600, tokens_per_minute: 90000, in_flight: 32}
    price: {input_per_million: 0.15, output_per_million: 0.60}
    sampling: {temperature: 0, max_tokens: 64}
    timeout_seconds: 30
"""
    )
    target = load_targets(file).get("demo")
    assert target.key is not None
    assert target.key.get_secret_value() == CANARY
    assert target.config.base_url == "http://127.0.0.1:9001/v1"
    assert target.config.limits.in_flight == 32
    assert CANARY not in repr(target)
    assert CANARY not in repr(target.view())
    assert CANARY not in target.scope


def test_a_key_file_is_read_without_its_line_break(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{CANARY}\n")
    target = Targets.of(content(api_key={"file": str(tmp_path / "key")})).get("demo")
    assert target.key is not None
    assert target.key.get_secret_value() == CANARY


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"api_key": CANARY}, "targets.demo.api_key: say where the key is"),
        ({"api_key": {"env": "NOT_SET_ANYWHERE"}}, "NOT_SET_ANYWHERE is not set"),
        ({"api_key": {"env": CANARY}}, "targets.demo.api_key.env"),
        ({"api_key": {"file": "/does/not/exist"}}, "targets.demo.api_key: the key file"),
        ({"api_key": {"env": "A", "file": "b"}}, "exactly one of env and file"),
        ({"base_url": "ftp://host"}, "targets.demo.base_url"),
        ({"base_url": f"http://user:{CANARY}@host/v1"}, "targets.demo.base_url"),
        ({"limit": {}}, "targets.demo.limit"),
        ({"limits": {"requests_per_minute": -1}}, "targets.demo.limits.requests_per_minute"),
        ({"timeout_seconds": 0}, "targets.demo.timeout_seconds"),
        ({"sampling": {"max_tokens": "many"}}, "targets.demo.sampling.max_tokens"),
    ],
)
def test_a_wrong_field_is_named_and_no_key_is_shown(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match="targets file") as caught:
        Targets.of(content(**changes))
    assert named in caught.value.detail
    assert CANARY not in repr(caught.value) + str(caught.value.errors)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must begin with"),
        ("targets: {}", "targets"),
        ("targets: {a: [", "line 1"),
        ("targets:\n  a: {base_url: x}\n  a: {base_url: y}\n", "given twice"),
        ("targets: !!python/object/apply:os.system [ls]", "YAML"),
    ],
)
def test_a_file_that_is_no_targets_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        load_targets(file)


def test_a_missing_file_says_which_option_gives_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--targets"):
        load_targets(tmp_path / "none.yaml")


def test_an_unknown_name_lists_those_that_are_known() -> None:
    with pytest.raises(UnknownTarget, match="demo"):
        Targets.of(content()).get("other")


def test_targets_with_one_key_and_model_share_a_limit() -> None:
    one = {"base_url": "http://h/v1", "model": "m"}
    targets = Targets.of({"targets": {"a": one, "b": one, "c": {**one, "model": "n"}}})
    assert targets.get("a").scope == targets.get("b").scope != targets.get("c").scope
