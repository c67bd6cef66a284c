"""What both clients know of their server: its address, the key, and how a request is built."""

from __future__ import annotations

import httpx
from pydantic import SecretStr

from instructzero.errors import InvalidRequest
from instructzero.flows import Call

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_SECONDS = 5.0


class Connection:
    """Where the server is, and the key, which is never shown."""

    def __init__(self, base_url: str, api_key: str | SecretStr | None, seconds: float) -> None:
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise InvalidRequest("the server's address cannot be read") from error
        if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
            raise InvalidRequest("write the server's address as http://HOST:PORT or https://HOST")
        self.base_url = base_url.rstrip("/")
        self._key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        self._seconds = seconds
        key = self._key.get_secret_value() if self._key is not None else ""
        if not key.isascii() or (key and not key.isprintable()):
            raise InvalidRequest("the API key holds characters that no key of ours has")

    def __repr__(self) -> str:
        key = "a key" if self._key is not None else "no key"
        return f"{self.base_url!r}, {key}"

    def request(self, call: Call) -> httpx.Request:
        """Return the HTTP request for a call."""
        headers = {"accept": "application/json", **call.headers}
        if call.content is not None:
            headers["content-type"] = "application/json"
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key.get_secret_value()}"
        timeout = httpx.Timeout(self._seconds + call.extra_seconds, connect=CONNECT_SECONDS)
        return httpx.Request(
            call.method,
            f"{self.base_url}{call.path}",
            params=dict(call.params),
            headers=headers,
            content=call.content,
            extensions={"timeout": timeout.as_dict()},
        )
