"""One thread for linear algebra, so that sums have one order and results one value."""

from __future__ import annotations

from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> Any:
    """Return a context in which BLAS uses one thread, whatever the process is set to.

    At the sizes of a search one thread is also the fastest.
    """
    return _controller().limit(limits=1, user_api="blas")
