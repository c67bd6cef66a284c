"""Find the instruction that makes a black-box language model do your task best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instructzero.contracts import (
    Budget,
    DatasetSpec,
    DryRun,
    Example,
    Job,
    JobSpec,
    JobStatus,
    Result,
    TaskSpec,
    TrialDetail,
    TrialView,
)
from instructzero.errors import InstructZeroError

if TYPE_CHECKING:
    from instructzero.client import AsyncClient, Client

__all__ = [
    "AsyncClient",
    "Budget",
    "Client",
    "DatasetSpec",
    "DryRun",
    "Example",
    "InstructZeroError",
    "Job",
    "JobSpec",
    "JobStatus",
    "Result",
    "TaskSpec",
    "TrialDetail",
    "TrialView",
]


def __getattr__(name: str) -> Any:
    """Import the clients when they are asked for: a service that has none does without httpx."""
    if name not in {"AsyncClient", "Client"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from instructzero import client

    return getattr(client, name)
