"""Runs inside vLLM's worker processes: looks at the hidden states that vLLM computes anyway.

vLLM gives out a prompt's hidden states or its text, not both. Its workers can be extended by a
class, though, and between two steps of the engine the last layer's states of everything that was
read lie in the worker's runner. `vllm_engine` names the requests whose prompts are to be looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

MARK = "states_"
"""How the names of such requests begin; vLLM appends a dash and letters of its own."""
NEEDED = ("execute_model", "execute_model_state", "query_start_loc", "requests", "input_batch")
"""What is used of the runner; vLLM's second generation of it keeps all this elsewhere."""
MOST_KEPT = 4_096
"""A caller that went away fetches nothing: the oldest are dropped."""


class PromptStateWorker:
    """Methods that vLLM adds to its worker class (`worker_extension_cls`), called by name."""

    model_runner: Any

    def keep_prompt_states(self) -> bool:
        """Look after every step from now on; returns whether this vLLM allows it."""
        runner = self.model_runner
        if not all(hasattr(runner, name) for name in NEEDED):
            return False
        self._prompt_sums: OrderedDict[str, Tensor] = OrderedDict()
        execute = runner.execute_model

        def execute_and_look(*arguments: Any, **options: Any) -> Any:
            output = execute(*arguments, **options)
            if runner.execute_model_state is not None:  # else nothing was run, or not its end
                self._add_prompt_rows(runner.execute_model_state)
            return output

        runner.execute_model = execute_and_look
        return True

    def take_prompt_state(self, name: str) -> bytes | None:
        """Return the mean over a prompt's rows, float32; None if it is not here."""
        total = self._prompt_sums.pop(name, None)
        if total is None:
            return None
        n_rows, sums = float(total[0]), total[1:]
        return (sums / n_rows).cpu().numpy().tobytes()

    def _add_prompt_rows(self, step: Any) -> None:
        """Add up the rows of prompts: long ones are read in several steps."""
        for request_id, n_tokens in step.scheduler_output.num_scheduled_tokens.items():
            if not request_id.startswith(MARK):
                continue
            request = self.model_runner.requests[request_id]
            begun = request.num_computed_tokens
            n_rows = min(n_tokens, request.num_prompt_tokens - begun)
            if n_rows <= 0:
                continue
            place = self.model_runner.input_batch.req_id_to_index[request_id]
            first = int(self.model_runner.query_start_loc.np[place])
            rows = step.hidden_states[first : first + n_rows].float()
            added = torch.cat([rows.new_tensor([n_rows]), rows.sum(0)])
            name = request_id.partition("-")[0]
            # From the first row on it begins anew: a request that had to give way is read again.
            self._prompt_sums[name] = added + self._prompt_sums[name] if begun else added
            while len(self._prompt_sums) > MOST_KEPT:
                self._prompt_sums.popitem(last=False)
