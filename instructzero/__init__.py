"""Find the instruction that makes a black-box language model do your task best."""

from instructzero.client import AsyncClient, Client
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
