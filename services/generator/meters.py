"""What the generator measures. Labels come from closed sets of our own words."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

WRITE_SECONDS = Histogram(
    "instructzero_generate_seconds",
    "Time that a request for instructions took, waiting included",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
IN_HAND = Gauge("instructzero_generate_requests_in_hand", "Requests accepted and not answered")
INSTRUCTIONS = Counter(
    "instructzero_instructions", "Instructions written: usable, or why they are not", ["outcome"]
)
GENERATED_TOKENS = Counter("instructzero_generated_tokens", "Tokens of the instructions written")
BATCH = Histogram(
    "instructzero_generate_batch_prompts",
    "Prompts decoded side by side (transformers engine)",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
PROMPT_CACHE = Counter(
    "instructzero_exemplar_lookups", "Look-ups of embedded exemplars, by hit or miss", ["outcome"]
)
