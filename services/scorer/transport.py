"""The HTTP transport under the OpenAI SDK: aiohttp, bounded bodies, no redirects, few headers.

The SDK's own transport has no bound on a body and follows redirects by default. This one reads the
whole body itself, up to a limit, so that neither an endless nor a huge answer can be had from it.
"""

from __future__ import annotations

import ssl

import aiohttp
import httpx2
from pydantic import SecretStr

KEEPALIVE_SECONDS = 4.0
"""Shorter than the 5 s after which common servers close: no request meets a closing connection."""

ALLOWED_HEADERS = ("accept", "content-type", "user-agent")
"""All that leaves, besides the key: the SDK would add the host's platform and more."""


class NotSent(httpx2.TransportError):
    """The connection was not made, so the target saw nothing and nothing was paid."""


class BadCertificate(NotSent):
    """The target's certificate is not trusted."""


class BodyTooLarge(httpx2.TransportError):
    """The answer was longer than any answer is."""


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Sends one request and reads one bounded answer."""

    def __init__(
        self,
        *,
        key: SecretStr | None,
        max_body_bytes: int,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        proxy: str | None,
    ) -> None:
        self._key = key
        self._max_body_bytes = max_body_bytes
        self._proxy = proxy
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_seconds, sock_read=read_timeout_seconds
        )
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; the body of the response has been read when this returns."""
        try:
            async with self._open_session().request(
                request.method,
                str(request.url),
                headers=self._headers(request),
                data=request.content or None,
                allow_redirects=False,
                timeout=self._timeout,
                proxy=self._proxy,
            ) as response:
                body = await self._read(response)
                return httpx2.Response(
                    response.status, headers=response.raw_headers, content=body, request=request
                )
        except aiohttp.ClientConnectorCertificateError as error:
            raise BadCertificate(type(error).__name__, request=request) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent(type(error).__name__, request=request) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout(type(error).__name__, request=request) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise httpx2.ReadError(type(error).__name__, request=request) from error

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(
                limit=0,  # the limiter bounds the calls in flight
                keepalive_timeout=KEEPALIVE_SECONDS,
                ssl=ssl.create_default_context(),
            )
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session

    def _headers(self, request: httpx2.Request) -> dict[str, str]:
        headers = {
            name: request.headers[name] for name in ALLOWED_HEADERS if name in request.headers
        }
        headers["accept-encoding"] = "identity"  # so that the bound on the body is one
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key.get_secret_value()}"
        return headers

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise httpx2.ReadError("an encoded body where none was asked for")
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._max_body_bytes:
                response.close()
                raise BodyTooLarge(f"more than {self._max_body_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)
