"""Wire models and enums: what crosses a process boundary, and nothing else.

Every model refuses unknown fields. Text may not hold control characters other than tab and line
breaks. Sizes are bounded, so that a malformed request is refused before any money is spent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

MAX_TEXT = 20_000
MAX_EXEMPLARS = 50
MAX_VALIDATION = 2_000
MIN_VALIDATION = 5
MAX_TEST = 5_000
DEFAULT_TEMPLATE = "Instruction: {instruction}\n\nInput: {input}\nOutput:"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def _no_control_characters(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("holds a control character; only tab and line breaks are allowed")
    return text


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[
    str, StringConstraints(max_length=MAX_TEXT), AfterValidator(_no_control_characters)
]
FilledText = Annotated[Text, StringConstraints(min_length=1)]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")
]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
LabelValue = Annotated[Text, StringConstraints(max_length=200)]
Outputs = Annotated[
    tuple[FilledText, ...],
    Field(min_length=1, max_length=200),
    BeforeValidator(_as_tuple, json_schema_input_type=FilledText | tuple[FilledText, ...]),
]
Share = Annotated[float, Field(ge=0, le=1)]


class Wire(BaseModel):
    """Base of all wire models: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- job spec -------------------------------------------------------------------------------------


class Example(Wire):
    """One input with its accepted outputs (one string, or several of which any is right)."""

    input: FilledText
    output: Outputs


class DatasetSpec(Wire):
    """Examples from files; read by the command line and the client, never by a server."""

    format: Literal["instruction_induction", "jsonl", "csv"]
    path: FilledText
    task: FilledText | None = None
    input: FilledText = "input"
    output: FilledText = "output"
    exemplars: int = Field(5, ge=1, le=MAX_EXEMPLARS)
    validation: int = Field(20, ge=MIN_VALIDATION, le=MAX_VALIDATION)
    test: int = Field(100, ge=0, le=MAX_TEST)
    seed: int = Field(0, ge=0, lt=2**63)


class TaskSpec(Wire):
    """The examples, and the instruction in use today.

    `validation` and `test` may not share an input with one another: the first of two is kept by
    `instructzero.datasets`, and a spec that still repeats one is refused.
    """

    exemplars: Annotated[tuple[Example, ...], Field(min_length=1, max_length=MAX_EXEMPLARS)]
    validation: Annotated[
        tuple[Example, ...], Field(min_length=MIN_VALIDATION, max_length=MAX_VALIDATION)
    ]
    test: Annotated[tuple[Example, ...], Field(max_length=MAX_TEST)] = ()
    baseline: FilledText | None = None
    instructions: Annotated[tuple[FilledText, ...], Field(max_length=50)] = ()

    @model_validator(mode="after")
    def _sets_are_disjoint(self) -> Self:
        seen: dict[str, str] = {}
        for split in ("validation", "test"):
            for index, example in enumerate(getattr(self, split)):
                where = f"{split}/{index}"
                if example.input in seen:
                    raise ValueError(
                        f"{where} has the same input as {seen[example.input]}; "
                        "remove one of them, or the result would not be honest"
                    )
                seen[example.input] = where
        return self


class MetricName(StrEnum):
    """h: (answer, accepted outputs) -> [0, 1]."""

    EXACT_MATCH = "exact_match"
    F1 = "f1"
    EXACT_SET = "exact_set"
    CONTAINS = "contains"
    NUMERIC = "numeric"
    REGEX = "regex"
    JSON_EQUAL = "json_equal"
    ROUGE_L = "rouge_l"
    JUDGE = "judge"
    WEBHOOK = "webhook"


class MetricSpec(Wire):
    """A metric with its parameters; written as a bare name when it has none.

    `tolerance` is absolute, for `numeric`. `target` and `rubric` are for `judge`; `webhook` is the
    name of a registered scoring webhook.
    """

    name: MetricName
    tolerance: float = Field(1e-6, ge=0)
    target: Name | None = None
    rubric: FilledText | None = None
    webhook: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _parameters_fit(self) -> Self:
        if self.name is MetricName.JUDGE and (self.target is None or self.rubric is None):
            raise ValueError("judge needs `target` (a registered connection) and `rubric`")
        if self.name is MetricName.WEBHOOK and self.webhook is None:
            raise ValueError("webhook needs `webhook`, the name of a registered scoring webhook")
        return self


class GeneratorSpec(Wire):
    """The search space: which open model writes, and how z becomes a soft prompt (Eqs. 2-3)."""

    name: Name = "default"
    n_tokens: int = Field(5, ge=1, le=64)
    intrinsic_dim: int = Field(10, ge=1, le=100)
    projection: Literal["uniform", "normal"] = "uniform"
    scale: float = Field(1.0, gt=0, le=100)
    soft_position: Literal["prefix", "suffix"] = "prefix"
    max_tokens: int = Field(64, ge=1, le=1024)


class StrategyName(StrEnum):
    """How the search decides."""

    DEFAULT = "default"
    INSTRUCTZERO = "instructzero"
    RANDOM = "random"
    APE = "ape"


class StrategySpec(Wire):
    """A strategy; written as a bare name when nothing is set. `GET /strategies` lists options."""

    name: StrategyName = StrategyName.DEFAULT
    options: Annotated[dict[LabelKey, bool | int | float | LabelValue], Field(max_length=20)] = {}

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Budget(Wire):
    """What a job may spend. At least one bound; each is enforced before a call is made."""

    calls: int | None = Field(None, ge=1, le=10_000_000)
    trials: int | None = Field(None, ge=1, le=100_000)
    usd: float | None = Field(None, gt=0, le=1e6)
    tokens: int | None = Field(None, ge=1, le=10**12)
    seconds: float | None = Field(None, gt=0, le=30 * 86_400)

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("set at least one of calls, trials, usd, tokens, seconds")
        return self


class Stop(Wire):
    """Ends that are not budgets: a fully evaluated instruction with at least this score."""

    score: float | None = Field(None, gt=0, le=1)


def _check_template(template: str) -> str:
    for placeholder in ("{instruction}", "{input}"):
        if template.count(placeholder) != 1:
            raise ValueError(f"must hold {placeholder} exactly once")
    return template


Template = Annotated[FilledText, AfterValidator(_check_template)]


def render(template: str, *, instruction: str, text: str) -> str:
    """Fill the two placeholders in one pass, so that braces in either text stay what they are."""
    head, _, rest = template.partition("{instruction}")
    if "{input}" in head:
        before, _, between = head.partition("{input}")
        return f"{before}{text}{between}{instruction}{rest}"
    between, _, tail = rest.partition("{input}")
    return f"{head}{instruction}{between}{text}{tail}"


class JobSpec(Wire):
    """One optimisation request, complete: examples inline, everything named that it uses."""

    name: Annotated[Text, StringConstraints(min_length=1, max_length=200)] = "job"
    task: TaskSpec
    metric: MetricSpec = MetricSpec(name=MetricName.EXACT_MATCH)
    target: Name
    template: Template = DEFAULT_TEMPLATE
    generator: GeneratorSpec = GeneratorSpec()
    strategy: StrategySpec = StrategySpec()
    budget: Budget
    stop: Stop = Stop()
    repeats: int = Field(1, ge=1, le=20)
    cache: bool = True
    weight: float = Field(1.0, gt=0, le=100)
    tenant: Name = "default"
    seed: int = Field(0, ge=0, lt=2**63)
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=20)] = {}

    def spec_hash(self) -> str:
        """Return the SHA-256 of what determines the result (not name, labels or tenant)."""
        content = self.model_dump(mode="json", exclude={"name", "labels", "tenant", "weight"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


# --- job ------------------------------------------------------------------------------------------


class JobStatus(StrEnum):
    """Where a job is. Cancel and pause are flags until the runner has seen them."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_finished(self) -> bool:
        """Whether the job will never change status again."""
        return self in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}


class StatusReason(Wire):
    """Why a job is where it is, for a program (`code`) and for a person (`message`)."""

    code: str
    message: str


class Usage(Wire):
    """What a job cost. `calls` counts every request sent, retries and calls in doubt included."""

    calls: int = 0
    cached_calls: int = 0
    failed_calls: int = 0
    in_doubt_calls: int = 0
    refused_answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None


Amount = TypeVar("Amount", int, float)


class Expected(Wire, Generic[Amount]):
    """An amount that is not known yet, with its 90 % interval."""

    expected: Amount
    interval: tuple[Amount, Amount]


class Forecast(Wire):
    """What a job will have cost when it ends; of one that has ended, what it cost.

    Counted as the budget counts: tokens and money in doubt included, time from the first start on.
    `usd` is None without a price.
    """

    calls: Expected[int]
    tokens: Expected[int]
    usd: Expected[float] | None
    seconds: Expected[float]


class Progress(Wire):
    """How far a job is."""

    trials: int = 0
    calls: int = 0
    evaluations: int = 0
    instructions: int = 0
    step: int = 0
    eta_seconds: float | None = None
    share: float | None = Field(None, description="share of the tightest budget that is used")


class Measured(Wire):
    """A mean score over n examples with its 90 % interval."""

    score: float
    interval: tuple[float, float]
    n: int


class Best(Wire):
    """The leader while the job runs, by the strategy's posterior mean."""

    instruction: str
    trial: int
    score: float
    interval: tuple[float, float]
    n_examples: int


class Job(Wire):
    """The job as the API shows it."""

    id: str
    name: str
    status: JobStatus
    status_reason: StatusReason | None = None
    stop_reason: str | None = None
    conditions: tuple[str, ...] = ()
    cancel_requested: bool = False
    pause_requested: bool = False
    progress: Progress = Progress()
    best: Best | None = None
    usage: Usage = Usage()
    forecast: Forecast | None = None
    spec: JobSpec
    spec_hash: str
    seed: int
    labels: dict[str, str] = {}
    version: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class JobPage(Wire):
    """One page of jobs, newest first."""

    data: tuple[Job, ...]
    next_cursor: str | None = None
    has_more: bool = False


class Estimate(Wire):
    """What a job is expected to cost; nothing has been spent. `usd` is None without a price.

    An interval goes from what is typical with short texts and answers to what is typical with long
    ones, and is no bound; `calls_at_most` and `usd_at_most` are.
    """

    calls: int
    calls_interval: tuple[int, int] | None = None
    calls_at_most: int | None
    prompt_tokens: int
    completion_tokens: int
    tokens_interval: tuple[int, int] | None = None
    usd: float | None
    usd_interval: tuple[float, float] | None = None
    usd_at_most: float | None
    seconds: float | None
    seconds_interval: tuple[float, float] | None = None
    final_check_calls: int
    notes: tuple[str, ...] = ()


class DryRun(Wire):
    """The answer to `POST /jobs?dry_run=true`."""

    spec: JobSpec
    spec_hash: str
    estimate: Estimate


class ExampleScore(Wire):
    """One evaluation of a trial: example number in the validation set, score and answer."""

    example: int
    input: str
    expected: tuple[str, ...]
    answer: str
    score: float


class TrialView(Wire):
    """An instruction that was tried on at least one example, as lists show it.

    Holds nothing that differs between two runs of the same spec and seed.
    """

    trial: int
    arm: int
    source: str = Field(description="soft_prompt, baseline, given")
    step: int
    z: tuple[float, ...] | None
    n_points: int = Field(description="how many latent points gave this text")
    instruction: str
    score: float
    interval: tuple[float, float]
    n_examples: int
    status: Literal["completed", "partial"]
    acquisition: float | None = None
    gp_mean: float | None = None
    gp_sd: float | None = None


class TrialDetail(TrialView):
    """One trial with its evaluations, cost and timing."""

    examples: tuple[ExampleScore, ...]
    usage: Usage
    started_at: datetime | None = None
    finished_at: datetime | None = None


class TrialPage(Wire):
    """One page of trials, in the order they were first tried."""

    data: tuple[TrialView, ...]
    next_cursor: str | None = None
    has_more: bool = False


class Event(Wire):
    """Something that happened to a job."""

    seq: int
    at: datetime
    type: str
    data: dict[str, JsonValue] = {}


class EventPage(Wire):
    """Events after a sequence number, oldest first."""

    data: tuple[Event, ...]
    has_more: bool = False


class Verdict(StrEnum):
    """Is the chosen instruction better than the one it is compared with?"""

    BETTER = "better"
    NOT_BETTER = "not_better"
    NOT_ENOUGH_DATA = "not_enough_data"


class ResultEntry(Wire):
    """An instruction with what was measured of it."""

    instruction: str
    trial: int | None = None
    validation: Measured | None = None
    test: Measured | None = None


class ChangedExample(Wire):
    """A test example on which the winner and its reference differ."""

    example: int
    input: str
    expected: tuple[str, ...]
    winner_answer: str
    reference_answer: str
    winner_score: float
    reference_score: float


class Comparison(Wire):
    """The winner against the baseline (or the empty instruction), paired on fresh examples."""

    reference: Literal["baseline", "empty"]
    difference: float | None
    interval: tuple[float, float] | None
    n: int
    fixed: tuple[ChangedExample, ...] = ()
    broken: tuple[ChangedExample, ...] = ()
    verdict: Verdict
    explanation: str


class Belief(Wire):
    """What the search's model believed of an instruction's score when the search ended."""

    instruction: str
    mean: float
    sd: float


class BoxSlice(Wire):
    """Expected improvement on a plane of the search box through the leader's soft prompt.

    `value` has a row for each value of the second of the two coordinates `axes`.
    """

    axes: tuple[int, int]
    grid: tuple[float, ...]
    value: tuple[tuple[float, ...], ...]
    leader: tuple[float, float]


class Surrogate(Wire):
    """The search's model at its end, best instruction first: for pictures, not a measurement."""

    leaders: tuple[Belief, ...]
    slice: BoxSlice | None = None


class Result(Wire):
    """The result document of a finished job."""

    job_id: str
    name: str
    spec_hash: str
    status: JobStatus
    status_reason: StatusReason | None = None
    stop_reason: str | None = None
    best: ResultEntry | None = None
    baseline: ResultEntry | None = None
    empty: ResultEntry | None = None
    comparison: Comparison | None = None
    test_set: Literal["given", "held_out", "none"]
    usage: Usage
    trials: int
    instructions: int
    seed: int
    reproducibility: dict[str, JsonValue] = {}
    surrogate: Surrogate | None = None
    created_at: datetime
    finished_at: datetime | None = None


class UsageGroup(Wire):
    """What some jobs have cost together; `group` is a job's id, a target, or a label's value.

    None: the jobs without the label. `jobs` counts those that took part, `name` is a job's.
    """

    group: str | None
    name: str | None = None
    jobs: int
    usage: Usage


class UsageReport(Wire):
    """What the jobs created in a period have cost: in all, and one page of it by group."""

    since: datetime | None = None
    until: datetime | None = None
    group_by: str
    jobs: int
    total: Usage
    data: tuple[UsageGroup, ...]
    next_cursor: str | None = None
    has_more: bool = False


# --- generator ------------------------------------------------------------------------------------


class ExemplarPair(Wire):
    """One exemplar as the generator model sees it."""

    input: FilledText
    output: FilledText


class ProjectionSpec(Wire):
    """The fixed random matrix A (Eq. 3). `scale` 1.0 matches the embedding table's spread."""

    seed: int = Field(0, ge=0, lt=2**63)
    kind: Literal["uniform", "normal"] = "uniform"
    scale: float = Field(1.0, gt=0, le=100)
    n_tokens: int = Field(5, ge=1, le=64)
    intrinsic_dim: int = Field(10, ge=1, le=100)


Coordinate = Annotated[float, Field(ge=-1, le=1)]


class GenerateRequest(Wire):
    """Turn latent points into instructions."""

    request_id: Annotated[Text, StringConstraints(min_length=1, max_length=200)]
    model: Name = "default"
    tenant: Name = "default"
    exemplars: Annotated[tuple[ExemplarPair, ...], Field(min_length=1, max_length=MAX_EXEMPLARS)]
    projection: ProjectionSpec = ProjectionSpec()
    soft_position: Literal["prefix", "suffix"] = "prefix"
    points: Annotated[
        tuple[Annotated[tuple[Coordinate, ...], Field(min_length=1, max_length=100)], ...],
        Field(min_length=1, max_length=1024),
    ]
    max_tokens: int = Field(64, ge=1, le=1024)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int = Field(0, ge=0, lt=2**63)
    features: bool = False
    deadline_seconds: float | None = Field(None, gt=0, le=3600)

    @model_validator(mode="after")
    def _points_fit(self) -> Self:
        for index, point in enumerate(self.points):
            if len(point) != self.projection.intrinsic_dim:
                raise ValueError(
                    f"points/{index} has {len(point)} coordinates, "
                    f"projection.intrinsic_dim says {self.projection.intrinsic_dim}"
                )
        return self


class GeneratedInstruction(Wire):
    """What the generator model wrote for one point; `rejected` names the guard that refused it."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    text: str
    tokens: int = 0
    finish_reason: str = "stop"
    features: tuple[float, ...] | None = None
    rejected: str | None = None


class InstructionLine(Wire):
    """One NDJSON line: one point's instruction, when it is finished.

    `point` is the point's place in the request.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    point: int = Field(ge=0)
    fingerprint: str
    instruction: GeneratedInstruction


class GenerateResponse(Wire):
    """Instructions in the order of the request's points."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    fingerprint: str
    instructions: tuple[GeneratedInstruction, ...]

    @classmethod
    def of(cls, lines: Iterable[InstructionLine], *, n_points: int) -> Self:
        """Put the lines of a streamed answer in order.

        Raises:
            ValueError: a point has no line, or several, or they are not of one search space.
        """
        ordered = sorted(lines, key=lambda line: line.point)
        if [line.point for line in ordered] != list(range(n_points)):
            raise ValueError("every point has exactly one line")
        fingerprints = {line.fingerprint for line in ordered}
        if len(fingerprints) > 1:
            raise ValueError("the lines have different fingerprints")
        return cls(
            fingerprint=fingerprints.pop(),
            instructions=tuple(line.instruction for line in ordered),
        )


# --- scorer ---------------------------------------------------------------------------------------


JUDGED_BYTES_PER_TOKEN = 8
"""A judge sees so many bytes of an answer for each token it may have; what is longer is cut off."""
JUDGE_WORDING_BYTES = 2_000
"""Bound on what a judge reads besides rubric, input, accepted outputs and answer."""


class ScoreExample(Wire):
    """One example to score; `id` is the caller's and comes back with the answer."""

    id: Annotated[Text, StringConstraints(min_length=1, max_length=100)]
    input: FilledText
    outputs: Outputs


class ScoreRequest(Wire):
    """Try one instruction on some examples.

    `calls` bounds the requests sent to the target for this request, retries and a judge's included;
    None allows the scorer's own number of attempts per example. What is not sent within
    `send_within_seconds` is given back unsent: by then the caller may have lost the right to spend.
    """

    job_id: Name
    tenant: Name = "default"
    weight: float = Field(1.0, gt=0, le=100)
    target: Name
    template: Template = DEFAULT_TEMPLATE
    instruction: Text
    examples: Annotated[tuple[ScoreExample, ...], Field(min_length=1, max_length=2_000)]
    metric: MetricSpec = MetricSpec(name=MetricName.EXACT_MATCH)
    repeats: int = Field(1, ge=1, le=20)
    calls: int | None = Field(None, ge=0)
    cache: bool = True
    send_within_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)


class TokenUsage(Wire):
    """Tokens of one evaluation, all its requests together."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class JudgeSpend(Wire):
    """The judge's part of what an evaluation cost; the line's own numbers include it."""

    calls: int = 0
    failed_calls: int = 0
    usage: TokenUsage = TokenUsage()
    usd: float | None = None


class ScoreError(Wire):
    """Why there is no score. `stops_job`: no other example can succeed either."""

    code: str
    message: str
    retryable: bool = False
    stops_job: bool = False


class ScoreLine(Wire):
    """One NDJSON line: one example, when its answer (or final failure) is known.

    Exactly one of `score` and `error` is set. `calls` counts requests sent for this example, failed
    ones (`failed_calls`) included; `cached` means none was needed. `refused`: a content filter
    answered; the score is then 0.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    id: str
    answer: str | None = None
    score: float | None = None
    usage: TokenUsage = TokenUsage()
    cached: bool = False
    error: ScoreError | None = None
    refused: bool = False
    calls: int = 0
    failed_calls: int = 0
    usd: float | None = None
    latency_ms: float | None = None
    judge: JudgeSpend | None = None


class ScoreCondition(Wire):
    """An NDJSON line that is no answer: what the request is waiting for; None: it goes on."""

    condition: Literal["rate_limited", "rate_limiter_unavailable", "target_unavailable"] | None


class TargetView(Wire):
    """A registered connection as `GET /targets` shows it: no address secrets, no key."""

    name: str
    model: str
    limits: dict[str, JsonValue]
    price: dict[str, JsonValue] | None
    max_tokens: int


# --- catalogue ------------------------------------------------------------------------------------


class GeneratorView(Wire):
    """A generator model that a job may name."""

    name: str


class OptionView(Wire):
    """An option of a strategy. `type` is the JSON type; `default` null: the strategy decides."""

    name: str
    type: Literal["boolean", "integer", "number", "string"]
    default: bool | int | float | str | None
    description: str = ""


class StrategyView(Wire):
    """A way to search, with what may be set."""

    name: StrategyName
    description: str
    options: tuple[OptionView, ...] = ()


class MetricView(Wire):
    """A metric, with the parameters that it takes in a job spec."""

    name: MetricName
    description: str
    parameters: tuple[str, ...] = ()


Entry = TypeVar("Entry")


class Listing(Wire, Generic[Entry]):
    """A complete list."""

    data: tuple[Entry, ...]


# --- problems -------------------------------------------------------------------------------------


class FieldError(Wire):
    """One field that is wrong: an RFC 6901 pointer into the body and what to do about it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pointer: str
    detail: str


class ProblemDocument(Wire):
    """An RFC 9457 problem document; every error has this form."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str = "about:blank"
    title: str = ""
    status: int
    code: str
    detail: str
    request_id: str = ""
    errors: tuple[FieldError, ...] = ()


class FailureLine(Wire):
    """The last NDJSON line of a streamed answer that broke off, and why."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    error: ProblemDocument
