"""The bundled demo: one tiny language model in two roles, and the target server that serves it.

A fixture for the quick start, the tests and the benchmarks: its steering by soft prompts is taught,
it knows twenty word-level tasks, and no claim about real language models may rest on it.
"""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"


def model_source(model: str) -> str:
    """Return what a generator is to load: the bundled model's folder for `demo`."""
    return str(MODEL_PATH) if model == "demo" else model
