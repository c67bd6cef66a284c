"""API keys: stored as SHA-256 digests, compared in constant time, required off loopback."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from instructzero.errors import InvalidRequest, Unauthorized
from services import web
from services.optimizer.settings import Settings

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/version"})
"""What answers without a key: what a load balancer asks."""
PREFIX = "iz_"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class NewKey(NamedTuple):
    """A fresh API key, shown once, and the digest that the server is given."""

    key: str
    digest: str


def new_key() -> NewKey:
    """Make an API key of 256 random bits."""
    key = PREFIX + secrets.token_urlsafe(32)
    return NewKey(key, digest_of(key))


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key, in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_digests(settings: Settings) -> tuple[str, ...]:
    """Return the digests of the keys that may call.

    Raises:
        InvalidRequest: one of them is no SHA-256 digest (a key itself, perhaps).
    """
    digests = tuple(text.strip().lower() for text in settings.api_key_hashes)
    if not all(_DIGEST.fullmatch(text) for text in digests):
        raise InvalidRequest(
            "IZ_OPTIMIZER_API_KEY_HASHES must hold SHA-256 digests of 64 hexadecimal digits, not "
            "keys; `instructzero key` prints a new key with its digest",
            reason="invalid_api_key_hashes",
        )
    return digests


def check_exposure(host: str, settings: Settings) -> None:
    """Refuse to listen beyond this machine without an API key.

    Raises:
        InvalidRequest: says how to make a key.
    """
    if read_digests(settings) or web.is_loopback(host):
        return
    raise InvalidRequest(
        f"refusing to listen on {host} without an API key: run `instructzero key`, give its hash "
        "to the server (IZ_OPTIMIZER_API_KEY_HASHES='[\"HASH\"]') and the key to its callers "
        "(Authorization: Bearer KEY), or listen on 127.0.0.1",
        reason="api_key_missing",
    )


class KeyCheck:
    """ASGI middleware: every path but the health checks needs a registered key.

    It stands before the router, so that unknown paths and the API's description are closed too.
    """

    def __init__(self, app: ASGIApp, digests: Sequence[str]) -> None:
        self._app = app
        self._digests = tuple(digest.encode() for digest in digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 401."""
        is_open = scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS
        if not self._digests or is_open or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        response = web.problem(
            str(scope.get("state", {}).get("request_id", "-")),
            status=Unauthorized.status,
            code=Unauthorized.code,
            detail="send an API key that this server knows: Authorization: Bearer KEY",
        )
        response.headers["www-authenticate"] = 'Bearer realm="instructzero"'
        await response(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        sent = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(sent) != 1:
            return False
        scheme, _, key = sent[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        digest = hashlib.sha256(key.strip()).hexdigest().encode()
        found = False
        for known in self._digests:  # every one, so that the time tells nothing
            found |= hmac.compare_digest(digest, known)
        return found
