"""What is looked at in a prompt before an engine that looks at nothing gets it."""

from __future__ import annotations

from instructzero.errors import InvalidRequest
from services.generator.engine import Decoding, EngineFacts, Prompt


def check_shape(prompt: Prompt, decoding: Decoding, facts: EngineFacts) -> None:
    """Refuse rows that would end the engine or make it write at random.

    Raises:
        InvalidRequest: rank, width, type or length is wrong.
    """
    for name, rows in (("head", prompt.head), ("soft", prompt.soft), ("tail", prompt.tail)):
        if rows.ndim != 2 or rows.shape[1] != facts.hidden_size:
            raise _bad_rows(
                f"the {name} of a prompt has the shape {tuple(rows.shape)}, not rows of "
                f"{facts.hidden_size} numbers"
            )
        wanted = "float32" if name == "soft" else facts.dtype
        if str(rows.dtype) != f"torch.{wanted}":
            raise _bad_rows(f"the {name} of a prompt is {rows.dtype}, not torch.{wanted}")
    if len(prompt) == 0:
        raise _bad_rows("a prompt has no rows")
    if decoding.max_tokens < 1:
        raise _bad_rows("at least one token must be asked for")
    if (
        facts.context_tokens is not None
        and len(prompt) + decoding.max_tokens > facts.context_tokens
    ):
        raise _bad_rows(
            f"a prompt has {len(prompt)} rows and {decoding.max_tokens} tokens more may be "
            f"written, but the engine holds {facts.context_tokens}",
            reason="prompt_too_long",
        )


def _bad_rows(detail: str, *, reason: str = "invalid_rows") -> InvalidRequest:
    return InvalidRequest(detail, reason=reason)
