"""FastAPI scaffold of every service: problem documents, health checks, body limit, safe headers."""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructzero.errors import (
    FieldProblem,
    InstructZeroError,
    InvalidRequest,
    PayloadTooLarge,
    Unauthorized,
)

log = logging.getLogger(__name__)
PROBLEM = "application/problem+json"
MAX_BODY_BYTES = 32 * 1024 * 1024
ReadyCheck = Callable[[], Awaitable[Mapping[str, str]]]
"""Returns {part: "ok" or what is wrong}."""
BeforeScrape = Callable[[], Awaitable[None]]
"""Brings figures up to date that are read, not counted."""

REQUESTS = Counter("instructzero_http_requests", "Requests answered", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "instructzero_http_request_seconds",
    "Time until an answer was sent whole, long polls and streams included",
    ["route"],
    buckets=(0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900),
)
METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})

LENGTH = b"content-length"
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)


def product_version() -> str:
    """Return the installed version of the product."""
    try:
        return version("instructzero")
    except PackageNotFoundError:
        return "0.0.0+source"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(service: str, host: str, token: SecretStr | None) -> None:
    """Refuse that a service listens beyond this machine without a token.

    Raises:
        InvalidRequest: says how to make one, and who needs it too.
    """
    if is_loopback(host) or (token is not None and token.get_secret_value()):
        return
    name = service.upper()
    raise InvalidRequest(
        f"refusing to listen on {host} without a token: set IZ_{name}_TOKEN to a long random "
        "string (python -c 'import secrets; print(secrets.token_urlsafe(32))') and give the same "
        f"to the runners as IZ_OPTIMIZER_{name}_TOKEN, or listen on 127.0.0.1",
        reason="token_missing",
    )


def check_token(token: SecretStr | None, header: str) -> None:
    """Check an Authorization header; without a token everybody may call.

    Raises:
        Unauthorized: it does not hold the token.
    """
    wanted = token.get_secret_value().encode() if token is not None else b""
    if not wanted:
        return
    scheme, _, sent = header.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent.encode(), wanted):
        raise Unauthorized("send this service's token: Authorization: Bearer ...")


def problem(
    request_id: str, *, status: int, code: str, detail: str, errors: tuple[FieldProblem, ...] = ()
) -> JSONResponse:
    """Return an RFC 9457 problem document."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id,
    }
    if errors:
        body["errors"] = [error._asdict() for error in errors]
    return JSONResponse(body, status_code=status, media_type=PROBLEM)


class Envelope:
    """ASGI middleware: a request id, safe headers, and a bound on the body before it is read."""

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.max_body_bytes)
        try:
            if exchange.declared_bytes() > self.max_body_bytes:
                response = refusal(exchange.request_id, exchange.oversize())
                await response(scope, receive, exchange.send)
                return
            await self.app(scope, exchange.receive, exchange.send)
        finally:
            exchange.measure()


class _Exchange:
    """One request and its answer: what the envelope adds to them, and what it measures."""

    __slots__ = ("_began", "_max_bytes", "_n_bytes", "_receive", "_scope", "_send", "_status")

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._n_bytes = self._status = 0
        self._began = time.monotonic()
        # What serves us may have named the request already.
        scope.setdefault("state", {}).setdefault("request_id", uuid.uuid4().hex)

    @property
    def request_id(self) -> str:
        return str(self._scope["state"]["request_id"])

    def declared_bytes(self) -> int:
        """Return how large the body is by its own account; 0 where it gives none."""
        lengths = [size for name, size in self._scope["headers"] if name.lower() == LENGTH]
        return int(lengths[-1]) if lengths and lengths[-1].isdigit() else 0

    def oversize(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self._max_bytes} bytes")

    async def receive(self) -> Message:
        message = await self._receive()
        self._n_bytes += len(message.get("body", b""))
        if self._n_bytes > self._max_bytes:
            raise self.oversize()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            present = {key.lower() for key, _ in message["headers"]}
            extra = (*SECURITY_HEADERS, (b"x-request-id", self.request_id.encode()))
            missing = [(key, value) for key, value in extra if key not in present]
            message["headers"] = [*message["headers"], *missing]
        await self._send(message)

    def measure(self) -> None:
        known = self._scope["state"].get("route") or getattr(self._scope.get("route"), "path", None)
        method = self._scope["method"] if self._scope["method"] in METHODS else "other"
        # A path that matches no route is anybody's text: never a label.
        status = str(self._status) if self._status else "gone"
        REQUESTS.labels(method, known or "none", status).inc()
        REQUEST_SECONDS.labels(known or "none").observe(time.monotonic() - self._began)


def name_route(scope: Scope, route: str) -> None:
    """Say which route a request took that the framework does not know."""
    scope["state"]["route"] = route


def request_id_of(request: Request) -> str:
    """Return the id that the envelope gave this request."""
    return str(getattr(request.state, "request_id", "-"))


def field_problems(errors: list[dict[str, object]]) -> tuple[FieldProblem, ...]:
    """Turn Pydantic's errors into pointers and details, never echoing the input."""
    problems = []
    for error in errors[:100]:
        parts = error["loc"] if isinstance(error["loc"], tuple) else ()
        path = [str(part).replace("~", "~0").replace("/", "~1") for part in parts if part != "body"]
        detail = str(error["msg"]).removeprefix("Value error, ")
        problems.append(FieldProblem("/" + "/".join(path) if path else "", detail[:500]))
    return tuple(problems)


def refusal(request_id: str, error: InstructZeroError) -> JSONResponse:
    """Return the problem document of an error of ours."""
    response = problem(
        request_id,
        status=error.status,
        code=error.reason,
        detail=error.detail,
        errors=error.errors,
    )
    if error.retry_after_seconds is not None:
        response.headers["retry-after"] = str(max(1, round(error.retry_after_seconds)))
    return response


async def _on_known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InstructZeroError)
    return refusal(request_id_of(request), error)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = field_problems([dict(item) for item in error.errors()])
    first = f"{errors[0].pointer or 'body'}: {errors[0].detail}" if errors else "not valid"
    return problem(
        request_id_of(request), status=422, code="invalid_request", detail=first, errors=errors
    )


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    response = problem(
        request_id_of(request), status=error.status_code, code=code, detail=str(error.detail)
    )
    response.headers.update(error.headers or {})
    return response


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    return bug(request_id_of(request), error)


def bug(request_id: str, error: Exception) -> JSONResponse:
    """Log an error that nobody meant, and return the problem document that hides it."""
    log.error("unhandled error", exc_info=error, extra={"request_id": request_id})
    return problem(
        request_id,
        status=500,
        code="internal_error",
        detail="something went wrong on our side; the log has it under this request id",
    )


def install(
    app: FastAPI,
    *,
    ready: ReadyCheck,
    max_body_bytes: int = MAX_BODY_BYTES,
    before_scrape: BeforeScrape | None = None,
) -> FastAPI:
    """Add problem documents, health checks, /metrics, /version and the envelope to a service."""
    app.add_exception_handler(InstructZeroError, _on_known)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(Envelope, max_body_bytes=max_body_bytes)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Say that the process runs."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses={503: {"description": "a part is missing"}})
    async def readyz() -> JSONResponse:
        """Say whether everything this service needs answers."""
        parts = dict(await ready())
        is_ready = all(state == "ok" for state in parts.values())
        return JSONResponse(
            {"status": "ok" if is_ready else "not_ready", "parts": parts},
            status_code=200 if is_ready else 503,
        )

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Give this process's figures in Prometheus's text format."""
        if before_scrape is not None:
            await before_scrape()
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/version", tags=["health"])
    async def show_version() -> dict[str, str]:
        """Say which version this is."""
        return {"version": product_version()}

    return app
