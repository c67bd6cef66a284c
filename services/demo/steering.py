"""How a soft prompt steers the demo model, as it is taught: fixed random linear read-outs.

The mean of the soft tokens is projected to 33 numbers; their largest, or the thresholds they pass,
choose the concept (the task itself or a related one), the grade, the phrase and the verb of the
instruction to be written. A small move of z changes few of them, so the landscape is smooth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.demo.corpus import DATA, PHRASES, RELATED, TASKS, VERBS, fraction

N_TASKS = len(TASKS)
CONCEPT, GRADE = slice(0, 4), N_TASKS
VERB, PHRASE = slice(N_TASKS + 4, N_TASKS + 10), slice(N_TASKS + 10, N_TASKS + 13)
N_READOUTS = N_TASKS + 13
IN_USE = [*range(4), GRADE, GRADE + 1, *range(N_TASKS + 4, N_TASKS + 13)]
"""Read-outs that choose something."""
THRESHOLDS = (1.3, 0.6, -0.1, -0.8)
"""A grade read-out above the first gives grade 0 (exact), below the last grade 4 (vague)."""
OWN_BIAS, OWN_SPREAD, RELATED_SPREAD = 0.7, 0.6, 0.5
SEED = 123

_GROUP = {task: i for i, tasks in enumerate(DATA["groups"].values()) for task in tasks}
_GRADE_OF = np.array([_GROUP[task] % 2 for task in TASKS])
_CONCEPTS = np.array(
    [[TASKS.index(task), *(TASKS.index(other) for other in RELATED[task])] for task in TASKS]
)
_BIAS = np.array(
    [
        [
            OWN_BIAS + OWN_SPREAD * (fraction("own" + task) - 0.5),
            *(RELATED_SPREAD * (fraction("b" + task + other) - 0.5) for other in RELATED[task]),
        ]
        for task in TASKS
    ]
)


def readout_matrix(hidden_size: int) -> NDArray[np.float32]:
    """Return the fixed read-outs, hidden_size x N_READOUTS, unit variance per read-out."""
    draw = np.random.default_rng(SEED)
    matrix = draw.standard_normal((hidden_size, N_READOUTS)) / np.sqrt(hidden_size)
    return np.asarray(matrix, np.float32)


def read(soft_tokens: NDArray[np.float32], readouts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what n x hidden_size soft tokens say; 1 is the embedding table's deviation."""
    mean: NDArray[np.float32] = soft_tokens.mean(0)
    said: NDArray[np.float32] = (mean @ readouts) * np.float32(len(soft_tokens) ** 0.5)
    return said


def labels(task_numbers: Sequence[int], readouts: NDArray[np.float32]) -> list[str]:
    """Return the instruction that each row's read-outs (n x N_READOUTS) ask for."""
    tasks = np.asarray(task_numbers)
    rows = np.arange(len(tasks))
    concepts = _CONCEPTS[tasks, (_BIAS[tasks] + readouts[:, CONCEPT]).argmax(1)]
    clear = readouts[rows, GRADE + _GRADE_OF[tasks]]
    grades = sum((clear < threshold).astype(int) for threshold in THRESHOLDS)
    verbs, phrases = readouts[:, VERB].argmax(1), readouts[:, PHRASE].argmax(1)
    return [
        f"{VERBS[v]} {PHRASES[TASKS[c]][g][p]}."
        for c, g, p, v in zip(concepts, np.asarray(grades), phrases, verbs, strict=True)
    ]
