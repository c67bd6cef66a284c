"""Registered connections: the targets file, keys by reference, limits and prices."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr, ValidationError

from instructzero.contracts import TargetView
from instructzero.errors import FieldProblem, InvalidRequest, UnknownTarget
from services.scorer.target_config import TargetConfig, TargetsFile, WebhookConfig

MAX_FILE_BYTES = 1024 * 1024
BASE64_SECRET = "whsec_"  # noqa: S105 - a prefix


@dataclass(frozen=True, slots=True)
class Target:
    """A connection with its key; the key shows in no repr."""

    name: str
    config: TargetConfig
    key: SecretStr | None = field(default=None, repr=False)

    @property
    def scope(self) -> str:
        """What shares one limit: address, key and model, as a digest."""
        key = self.key.get_secret_value() if self.key else ""
        parts = "\0".join((self.config.base_url, key, self.config.model))
        return hashlib.sha256(parts.encode()).hexdigest()[:24]

    def view(self) -> TargetView:
        """Return what a client may see."""
        price = self.config.price
        return TargetView(
            name=self.name,
            model=self.config.model,
            limits=self.config.limits.model_dump(exclude={"burst"}),
            price=price.model_dump() if price else None,
            max_tokens=self.config.sampling.max_tokens,
        )


@dataclass(frozen=True, slots=True)
class Webhook:
    """A scoring webhook with the key of its signatures, which shows in no repr."""

    name: str
    config: WebhookConfig
    key: bytes = field(repr=False)


class Targets:
    """The registered connections by name."""

    def __init__(self, targets: Mapping[str, Target], webhooks: Mapping[str, Webhook]) -> None:
        self._targets = dict(targets)
        self._webhooks = dict(webhooks)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Targets:
        """Check the content of a targets file and read its keys.

        Raises:
            InvalidRequest: names each wrong field and says what to do.
        """
        try:
            checked = TargetsFile.model_validate(content)
        except ValidationError as error:
            raise _refused([(item["loc"], str(item["msg"])) for item in error.errors()]) from None
        problems: list[tuple[tuple[int | str, ...], str]] = []
        targets: dict[str, Target] = {}
        webhooks: dict[str, Webhook] = {}
        for name, config in checked.targets.items():
            try:
                targets[name] = Target(
                    name, config, config.api_key.resolve() if config.api_key else None
                )
            except ValueError as error:
                problems.append((("targets", name, "api_key"), str(error)))
        for name, hook in checked.webhooks.items():
            try:
                webhooks[name] = Webhook(name, hook, _signing_key(hook.secret.resolve()))
            except ValueError as error:
                problems.append((("webhooks", name, "secret"), str(error)))
        if problems:
            raise _refused(problems)
        return cls(targets, webhooks)

    def get(self, name: str, *, pointer: str = "/target") -> Target:
        """Return one target; `pointer` says which field of a request names it.

        Raises:
            UnknownTarget: lists the names that are registered.
        """
        if name not in self._targets:
            known = ", ".join(sorted(target.name for target in self)) or "none"
            detail = f"no such target is registered; registered are: {known}"
            raise UnknownTarget(detail, errors=[FieldProblem(pointer, detail)])
        return self._targets[name]

    def webhook(self, name: str) -> Webhook:
        """Return one scoring webhook.

        Raises:
            UnknownTarget: it is not registered.
        """
        if name not in self._webhooks:
            detail = "no such webhook is registered; add it under `webhooks` in the targets file"
            raise UnknownTarget(detail, errors=[FieldProblem("/metric/webhook", detail)])
        return self._webhooks[name]

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets.values())


def load_targets(path: Path | str) -> Targets:
    """Read a targets file.

    Raises:
        InvalidRequest: names each wrong field and says what to do.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise InvalidRequest(f"{file}: larger than a targets file can be")
        content = _StrictLoader(file.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise InvalidRequest(
            f"{file}: cannot be read ({error.strerror}); give a targets file with --targets",
            reason="invalid_targets",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or type(error).__name__
        raise InvalidRequest(
            f"{file}{where}: not valid YAML ({why})", reason="invalid_targets"
        ) from None
    if not isinstance(content, Mapping):
        raise InvalidRequest(f"{file}: must begin with `targets:`", reason="invalid_targets")
    return Targets.of(content)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


def _signing_key(secret: SecretStr) -> bytes:
    text = secret.get_secret_value()
    if not text.startswith(BASE64_SECRET):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(BASE64_SECRET), validate=True)
    except ValueError:
        raise ValueError(f"what follows {BASE64_SECRET} in the secret is not base64") from None


def _refused(problems: list[tuple[tuple[int | str, ...], str]]) -> InvalidRequest:
    fields = [
        FieldProblem("/" + "/".join(map(str, place)), message.removeprefix("Value error, "))
        for place, message in problems
    ]
    shown = "; ".join(
        f"{problem.pointer[1:].replace('/', '.')}: {problem.detail}" for problem in fields[:10]
    )
    return InvalidRequest(f"targets file: {shown}", errors=fields, reason="invalid_targets")
