"""What the scorer measures. Labels come from closed sets: the targets file and our own words."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter(
    "instructzero_calls",
    "Requests to a target that ended, by how: answered, refused, wait, retry...",
    ["target", "outcome"],
)
CALL_SECONDS = Histogram(
    "instructzero_call_seconds",
    "Time from sending a request to a target to its last byte",
    ["target"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120),
)
TOKENS = Counter(
    "instructzero_tokens", "Tokens that targets counted for answers", ["target", "kind"]
)
USD = Counter("instructzero_spent_usd", "What answers cost by the targets file", ["target"])
CACHED = Counter(
    "instructzero_cached_answers", "Answers found in the cache instead of bought", ["target"]
)
WAITING = Gauge(
    "instructzero_waiting_calls", "Calls that wait for a permit, the cache or a target", ["reason"]
)
WAIT_SECONDS = Histogram(
    "instructzero_wait_seconds",
    "How long a call waited, by the reason",
    ["reason"],
    buckets=(0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900),
)
EXAMPLES = Gauge("instructzero_examples_in_hand", "Examples handed over and not yet answered")
