"""Who may call the scorer: whoever sends its token."""

from __future__ import annotations

import hmac

from instructzero.errors import Unauthorized
from services.scorer.settings import Settings


def authorise(settings: Settings, header: str) -> None:
    """Check an Authorization header; without a token everybody may call.

    Raises:
        Unauthorized: it does not hold the token.
    """
    wanted = settings.token.get_secret_value().encode() if settings.token else b""
    if not wanted:
        return
    scheme, _, sent = header.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent.encode(), wanted):
        raise Unauthorized("send the scorer's token: Authorization: Bearer ...")
