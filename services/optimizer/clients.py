"""HTTP adapters of the generator and the scorer; failures become our own errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from pydantic import TypeAdapter, ValidationError

from instructzero.contracts import (
    GenerateRequest,
    GenerateResponse,
    ScoreCondition,
    ScoreLine,
    ScoreRequest,
    TargetView,
)
from instructzero.errors import GeneratorRefused, GeneratorUnavailable, ScorerUnavailable

CONNECT_SECONDS = 5.0
GENERATE_SECONDS = 600.0
QUIET_SECONDS = 300.0
_LINE: TypeAdapter[ScoreLine | ScoreCondition] = TypeAdapter(ScoreLine | ScoreCondition)
_TARGETS = TypeAdapter(tuple[TargetView, ...])


def _detail(response: httpx.Response) -> str:
    """Return a problem document's detail, or the start of whatever came."""
    try:
        body = response.json()
    except ValueError:
        return f"status {response.status_code}"
    detail = body.get("detail") if isinstance(body, dict) else None
    return f"status {response.status_code}: {str(detail)[:300]}"


class HttpGenerator:
    """A generator behind `POST /v1/instructions`."""

    def __init__(self, url: str, *, in_flight: int, headers: dict[str, str] | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=headers,
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
        try:
            async with self._slots:
                response = await self._client.post("/v1/instructions", json=body)
        except httpx.HTTPError as error:
            raise GeneratorUnavailable(
                f"the generator does not answer ({type(error).__name__})"
            ) from error
        if response.status_code in {408, 425, 429} or response.status_code >= 500:
            raise GeneratorUnavailable(f"the generator answered {_detail(response)}")
        if response.status_code != 200:
            raise GeneratorRefused(f"the generator answered {_detail(response)}")
        try:
            return GenerateResponse.model_validate_json(response.content)
        except ValidationError as error:
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


class HttpScorer:
    """A scorer pool behind `POST /v1/scores`."""

    def __init__(self, url: str, *, headers: dict[str, str] | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=httpx.Timeout(QUIET_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            follow_redirects=False,
        )

    async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
        """Yield one line per example, as it arrives.

        Raises:
            ScorerUnavailable: the stream could not be opened, or broke.
        """
        body = request.model_dump(mode="json", exclude_none=True)
        expected = {example.id for example in request.examples}
        try:
            async with self._client.stream("POST", "/v1/scores", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise ScorerUnavailable(f"the scorer answered {_detail(response)}")
                async for text in response.aiter_lines():
                    if text.strip():
                        line = _LINE.validate_json(text)
                        expected.discard(getattr(line, "id", ""))
                        yield line
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
        """
        try:
            response = await self._client.get("/v1/targets", timeout=CONNECT_SECONDS)
            response.raise_for_status()
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
