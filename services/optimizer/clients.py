"""HTTP adapters of the generator and the scorer; failures become our own errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from pydantic import SecretStr, TypeAdapter, ValidationError

from instructzero.contracts import (
    FailureLine,
    GenerateRequest,
    GenerateResponse,
    InstructionLine,
    ScoreCondition,
    ScoreLine,
    ScoreRequest,
    TargetView,
)
from instructzero.errors import (
    GeneratorRefused,
    GeneratorUnavailable,
    ScorerNotReached,
    ScorerRefused,
    ScorerUnavailable,
)

CONNECT_SECONDS = 5.0
GENERATE_SECONDS = 600.0
QUIET_SECONDS = 300.0
NDJSON = "application/x-ndjson"
AS_LINES = {"accept": f"{NDJSON}, application/json;q=0.9"}
"""Lines keep the connection busy while others are written; a server may still answer at once."""
_INSTRUCTION: TypeAdapter[InstructionLine | FailureLine] = TypeAdapter(
    InstructionLine | FailureLine
)
_LINE: TypeAdapter[ScoreLine | ScoreCondition] = TypeAdapter(ScoreLine | ScoreCondition)
_TARGETS = TypeAdapter(tuple[TargetView, ...])


def _detail(response: httpx.Response) -> str:
    """Return the status, and a problem document's detail."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
    return f"status {response.status_code}: {str(detail)[:300]}"


def _may_pass(status: int) -> bool:
    """Return whether another attempt can do better."""
    return status in {408, 425, 429} or status >= 500


def _refusal(service: str, response: httpx.Response) -> str:
    """Say what to do about a status that will not pass."""
    said = f"the {service} answered {_detail(response)}"
    if response.status_code in {401, 403}:
        name = service.upper()
        return f"{said}; set IZ_OPTIMIZER_{name}_TOKEN to what its IZ_{name}_TOKEN is"
    if response.status_code in {404, 405} or response.is_redirect:
        return f"{said}; check --{service}-url"
    return said


def _headers(token: SecretStr | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token.get_secret_value()}"}


async def _rows(response: httpx.Response) -> AsyncIterator[bytes]:
    """Read NDJSON; httpx's own lines go through text and cost four times as much."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        for text in whole:
            if text.strip():
                yield text
    if rest.strip():
        yield rest


async def _read_instructions(response: httpx.Response, n_points: int) -> GenerateResponse:
    """Read an answer that comes line by line."""
    lines: list[InstructionLine] = []
    async for text in _rows(response):
        line = _INSTRUCTION.validate_json(text)
        if isinstance(line, FailureLine):
            said = f"the generator broke off: {line.error.code}: {line.error.detail[:300]}"
            raise GeneratorUnavailable(said)
        lines.append(line)
    if len(lines) < n_points:
        raise GeneratorUnavailable("the generator's answer ended before its last line")
    return GenerateResponse.of(lines, n_points=n_points)


def _failure(response: httpx.Response) -> GeneratorUnavailable | GeneratorRefused:
    if _may_pass(response.status_code):
        return GeneratorUnavailable(
            f"the generator answered {_detail(response)}", retry_after_seconds=_pause(response)
        )
    return GeneratorRefused(_refusal("generator", response))


def _pause(response: httpx.Response) -> float | None:
    """Return the Retry-After of a response, where it is a number of seconds."""
    asked = response.headers.get("retry-after", "")
    return float(asked) if asked.isdigit() else None


class HttpGenerator:
    """A generator behind `POST /v1/instructions`."""

    def __init__(self, url: str, *, in_flight: int, token: SecretStr | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=_headers(token),
            timeout=httpx.Timeout(GENERATE_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=False,
        )
        self._slots = asyncio.Semaphore(in_flight)

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Return one instruction per point.

        Raises:
            GeneratorUnavailable: it does not answer, is busy (429) or broken (5xx).
            GeneratorRefused: it refused the request, or answered what cannot be read.
        """
        body = request.model_dump(mode="json", exclude_none=True)
        asked = self._client.stream("POST", "/v1/instructions", json=body, headers=AS_LINES)
        try:
            async with self._slots, asked as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _failure(response)
                if NDJSON in response.headers.get("content-type", ""):
                    return await _read_instructions(response, len(request.points))
                return GenerateResponse.model_validate_json(await response.aread())
        except httpx.HTTPError as error:
            raise GeneratorUnavailable(
                f"the generator does not answer ({type(error).__name__})"
            ) from error
        except ValueError as error:  # pydantic's errors are some of them
            raise GeneratorRefused("the generator's answer has another form than agreed") from error

    async def models(self) -> tuple[str, ...] | None:
        """Return the models it serves, None if it does not say."""
        try:
            response = await self._client.get("/v1/models", timeout=CONNECT_SECONDS)
            names = [str(model["id"]) for model in response.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None
        return tuple(names)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _check(response: httpx.Response) -> None:
    """Raise what a scorer's status means.

    Raises:
        ScorerNotReached: it is busy.
        ScorerUnavailable: it, or what stands before it, is broken.
        ScorerRefused: another attempt will not do better.
    """
    status = response.status_code
    if status == 200:
        return
    await response.aread()
    if _may_pass(status):
        kind = ScorerUnavailable if status >= 500 else ScorerNotReached
        raise kind(f"the scorer answered {_detail(response)}")
    raise ScorerRefused(_refusal("scorer", response))


class HttpScorer:
    """A scorer pool behind `POST /v1/scores`."""

    def __init__(self, url: str, *, token: SecretStr | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=_headers(token),
            timeout=httpx.Timeout(QUIET_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            follow_redirects=False,
        )

    async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
        """Yield one line per example, as it arrives.

        Raises:
            ScorerNotReached: the request never got to it, or it is busy.
            ScorerUnavailable: the stream broke.
            ScorerRefused: the scorer will not take this request.
        """
        # a scorer of the version before this would refuse the field: it is sent from the next on
        body = request.model_dump(mode="json", exclude_none=True, exclude={"send_within_seconds"})
        expected = {example.id for example in request.examples}
        try:
            async with self._client.stream("POST", "/v1/scores", json=body) as response:
                await _check(response)
                async for text in _rows(response):
                    line = _LINE.validate_json(text)
                    if isinstance(line, ScoreLine):
                        expected.discard(line.id)
                    yield line
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ScorerNotReached(
                f"the scorer cannot be reached ({type(error).__name__})"
            ) from error
        except httpx.HTTPError as error:
            raise ScorerUnavailable(
                f"the scorer does not answer ({type(error).__name__})"
            ) from error
        except ValidationError as error:
            raise ScorerUnavailable("the scorer's answer has another form than agreed") from error
        if expected:
            raise ScorerUnavailable("the scorer's answer ended before its last line")

    async def targets(self) -> tuple[TargetView, ...]:
        """Return the registered connections.

        Raises:
            ScorerUnavailable: it does not answer.
            ScorerRefused: it does not accept our token, or is no scorer.
        """
        try:
            response = await self._client.get("/v1/targets", timeout=CONNECT_SECONDS)
            await _check(response)
            content = response.json()
            rows = content["data"] if isinstance(content, dict) else content
            return _TARGETS.validate_python(rows)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise ScorerUnavailable(
                f"the scorer does not answer ({type(error).__name__})"
            ) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
