"""Faults that the demo target plays on request, so that a client's behaviour can be rehearsed.

Which requests fail depends on the seed and on the request's number alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from enum import StrEnum

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from instructzero.errors import InvalidRequest

FOREVER_SECONDS = 3600.0
_SLOW_PIECES, _SLOW_PAUSE_SECONDS = 20, 0.5


class Fault(StrEnum):
    """A way to fail."""

    RATE_LIMITED = "429"
    RATE_LIMITED_NO_HINT = "429_no_hint"
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    TIMEOUT = "timeout"
    BROKEN_BODY = "broken_body"
    CUT = "cut"
    SLOW = "slow"
    EMPTY = "empty"
    QUOTA = "quota"
    FILTER = "filter"


def parse_fault(text: str) -> tuple[str, float]:
    """Read `KIND=RATE`.

    Raises:
        InvalidRequest: says what is wrong and which kinds there are.
    """
    kind, equals, rate = text.partition("=")
    kinds = ", ".join(Fault)
    if not equals:
        raise _invalid(f"write a fault as KIND=RATE, such as 500=0.1; the kinds are {kinds}")
    if kind not in set(Fault):
        raise _invalid(f"no such fault; the kinds are {kinds}")
    try:
        value = float(rate)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise _invalid(f"the rate of {kind} must be a number from 0 to 1, such as {kind}=0.1")
    return kind, value


class FaultPlan:
    """Decides by its number which request fails, and how."""

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        """Check the rates.

        Raises:
            InvalidRequest: a kind or a rate makes no sense, or the rates sum to more than 1.
        """
        checked = dict(parse_fault(f"{kind}={rate}") for kind, rate in rates.items())
        self._rates = {Fault(kind): rate for kind, rate in checked.items()}
        if sum(self._rates.values()) > 1 + 1e-9:
            raise _invalid("the rates of all faults together may not exceed 1")
        self._seed = seed

    def of(self, number: int) -> Fault | None:
        """Return the fault of a request."""
        digest = hashlib.sha256(f"{self._seed}/{number}".encode()).digest()
        left = int.from_bytes(digest[:6], "big") / 2**48
        for fault, rate in self._rates.items():
            if left < rate:
                return fault
            left -= rate
        return None


class CutResponse(Response):
    """Promises a body, sends half of it and closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Return before the body is complete, upon which the server hangs up."""
        await send(_start(self))
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})


class SlowResponse(Response):
    """Sends its body in small pieces with pauses, ten seconds in all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Trickle until the end or until the client is gone."""
        await send(_start(self))
        body = bytes(self.body)
        size = -(-len(body) // _SLOW_PIECES)
        for at in range(0, len(body), size):
            piece = {"type": "http.response.body", "body": body[at : at + size]}
            await send({**piece, "more_body": True})
            if not await client_stays(Request(scope, receive), _SLOW_PAUSE_SECONDS):
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def client_stays(request: Request, seconds: float) -> bool:
    """Wait; return False as soon as the client of a fully read request hangs up."""
    try:
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return True
    return False


def _start(response: Response) -> dict[str, object]:
    return {
        "type": "http.response.start",
        "status": response.status_code,
        "headers": response.raw_headers,
    }


def _invalid(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, reason="invalid_fault")
