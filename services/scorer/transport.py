"""HTTP to a target: aiohttp, bounded bodies, no redirects, few headers.

The whole body is read here, up to a limit, so that neither an endless nor a huge answer can be had.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from pydantic import SecretStr

KEEPALIVE_SECONDS = 4.0
"""Shorter than the 5 s after which common servers close: no request meets a closing connection."""


class TransportError(Exception):
    """No whole answer came."""


class NotSent(TransportError):
    """The connection was not made, so the target saw nothing and nothing was paid."""


class BadCertificate(NotSent):
    """The target's certificate is not trusted."""


class ConnectionLost(TransportError):
    """The connection broke, or what came over it was not HTTP."""


class BodyTooLarge(TransportError):
    """The answer was longer than any answer is."""


class Answer(NamedTuple):
    """A whole HTTP answer; the names of the headers are found in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """The connections to one target; at most as many are open as calls are in flight."""

    def __init__(
        self,
        *,
        key: SecretStr | None,
        max_body_bytes: int,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        proxy: str | None,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._proxy = proxy
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_seconds, sock_read=read_timeout_seconds
        )
        self._headers = {
            "accept": "application/json",
            "accept-encoding": "identity",  # so that the bound on the body is one
            "content-type": "application/json",
            "user-agent": "instructzero",
        }
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def send(self, method: str, url: str, body: bytes | None = None) -> Answer:
        """Send one request and read the whole answer.

        Raises:
            TransportError: none came; the class says how far it got.
            TimeoutError: it took too long.
        """
        try:
            async with self._open_session().request(
                method,
                url,
                headers=self._with_key(),
                data=body,
                allow_redirects=False,
                timeout=self._timeout,
                proxy=self._proxy,
            ) as response:
                return Answer(response.status, response.headers, await self._read(response))
        except aiohttp.ClientConnectorCertificateError as error:
            raise BadCertificate(type(error).__name__) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent(type(error).__name__) from error
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ConnectionLost(type(error).__name__) from error

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

    def _with_key(self) -> dict[str, str]:
        if self._key is None:
            return self._headers
        return {**self._headers, "authorization": f"Bearer {self._key.get_secret_value()}"}

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ConnectionLost("an encoded body where none was asked for")
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._max_body_bytes:
                response.close()
                raise BodyTooLarge(f"more than {self._max_body_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)
