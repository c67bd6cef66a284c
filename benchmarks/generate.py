"""Instructions per second: one at a time, our engines, our service, and vLLM's own ceiling.

    python -m benchmarks.generate --smoke     # a few prompts, writes nothing
    python -m benchmarks.generate             # 500 soft prompts, on this machine's CPU or GPU
    python -m benchmarks.generate --model Qwen/Qwen2.5-0.5B-Instruct --n 2000

The same soft prompts, greedily, the same number of tokens at most, four ways:

    a  transformers' `generate`, one soft prompt after the other, as the paper's code does
    b  our transformers engine, in batches
    c  our service: HTTP, Ray Serve, vLLM; several requests in flight, as the runner sends them
    d  vLLM's own `LLM.generate` on the same embeddings: the most that (c) could reach

Every way runs alone and is warmed up first; (c) and (d) are processes of their own. Who else uses
the machine changes from minute to minute: the ways take turns, round after round, and medians over
all rounds are compared. The default takes about five minutes on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.record import record
from instructzero.contracts import GenerateRequest
from services.demo import MODEL_PATH
from services.generator.app import create_service
from services.generator.service import GeneratorService
from services.generator.settings import GeneratorSettings
from services.optimizer.clients import HttpGenerator

DIM = 10
EXEMPLARS = [
    {"input": "sane", "output": "insane"},
    {"input": "direct", "output": "indirect"},
    {"input": "hot", "output": "cold"},
    {"input": "early", "output": "late"},
    {"input": "add", "output": "subtract"},
]
POINTS_PER_REQUEST, REQUESTS_IN_FLIGHT = 125, 4
START_SECONDS = 900.0
NAMES = {
    "a": "transformers, one at a time",
    "b": "transformers engine, batched",
    "c": "service on vLLM",
    "d": "LLM.generate",
}


class Run(NamedTuple):
    """The seconds of each repeat, and the texts of the last one."""

    seconds: list[float]
    texts: list[str]


def body_for(points: Sequence[Sequence[float]], max_tokens: int) -> dict[str, Any]:
    """Return a request for some points."""
    return {
        "request_id": "benchmark",
        "exemplars": EXEMPLARS,
        "points": [list(point) for point in points],
        "max_tokens": max_tokens,
    }


def draw_points(n: int, seed: int) -> list[list[float]]:
    """Draw points of the search box."""
    drawn: list[list[float]] = np.random.default_rng(seed).uniform(-1, 1, (n, DIM)).tolist()
    return drawn


def one_at_a_time(service: GeneratorService, body: dict[str, Any]) -> list[str]:
    """Write each text with a `generate` of its own."""
    engine = service._writer.engine
    model: Any = getattr(engine, "_model")  # noqa: B009 - another engine has none
    prompts = service._writer.assemble(GenerateRequest.model_validate(body))
    texts = []
    with torch.inference_mode():
        for prompt in prompts:
            rows = prompt.rows()[None]
            ids = model.generate(
                inputs_embeds=rows,
                attention_mask=torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device),
                max_new_tokens=body["max_tokens"],
                do_sample=False,
                eos_token_id=list(getattr(engine, "_stop_ids")),  # noqa: B009
                pad_token_id=0,
            )
            texts.append(str(engine.tokenizer.decode(ids[0], skip_special_tokens=True)))
    return texts


@contextmanager
def served(model: str) -> Iterator[str]:
    """Start the service as its command does; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "services.cli", "generator", "--engine", "vllm"]
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, "--model", model, "--port", str(port)], stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _is_ready(f"http://127.0.0.1:{port}/readyz"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"the service did not start:\n{log.read()[-2000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(120)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


async def over_http(client: HttpGenerator, body: dict[str, Any]) -> list[str]:
    """Send the points in several requests at a time, with the runner's own client."""
    points = body["points"]
    size = max(1, min(POINTS_PER_REQUEST, -(-len(points) // REQUESTS_IN_FLIGHT)))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    async with asyncio.TaskGroup() as group:
        requests = [GenerateRequest.model_validate({**body, "points": part}) for part in parts]
        tasks = [group.create_task(client.generate(request)) for request in requests]
    return [written.text for task in tasks for written in task.result().instructions]


CEILING = """
import json, sys, time
from pathlib import Path
from services.generator.settings import GeneratorSettings, send_no_usage_reports
send_no_usage_reports()
from safetensors.torch import load_file
from vllm import LLM, SamplingParams
import torch
from services.generator.checkpoint import read_config
from services.generator.model_folder import find_model
from services.generator.vllm_options import engine_args

def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    settings = GeneratorSettings(model=job["model"], engine="vllm", offline=True)
    folder = find_model(settings)
    dtype = getattr(torch, job["dtype"])
    args = engine_args(folder.path, settings, read_config(folder), dtype)
    keep = ("model", "enable_prompt_embeds", "dtype", "generation_config", "max_model_len",
            "max_num_seqs", "kv_cache_memory_bytes", "enforce_eager", "enable_chunked_prefill",
            "enable_prefix_caching", "gpu_memory_utilization")
    llm = LLM(**{name: getattr(args, name) for name in keep})
    rows = load_file(job["rows"])
    prompts = [{"prompt_embeds": rows[str(i)]} for i in range(len(rows))]
    params = SamplingParams(temperature=0, max_tokens=job["max_tokens"],
                            stop_token_ids=job["stop_ids"])
    llm.generate(prompts, params, use_tqdm=False)
    seconds = []
    for _ in range(job["repeats"]):
        llm.reset_prefix_cache()
        begun = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - begun)
    Path(job["out"]).write_text(json.dumps(
        {"seconds": seconds, "texts": [o.outputs[0].text for o in outputs]}))

if __name__ == "__main__":
    main()
"""


def ceiling(model: str, service: GeneratorService, body: dict[str, Any], repeats: int) -> Run:
    """Run vLLM's own batch interface on the same rows, in a process of its own."""
    prompts = service._writer.assemble(GenerateRequest.model_validate(body))
    engine = service._writer.engine
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_file({str(i): p.rows().cpu().clone() for i, p in enumerate(prompts)}, folder / "rows")
        job = {
            "model": model,
            "dtype": engine.facts.dtype,
            "rows": str(folder / "rows"),
            "out": str(folder / "out.json"),
            "max_tokens": body["max_tokens"],
            "stop_ids": list(getattr(engine, "_stop_ids")),  # noqa: B009
            "repeats": repeats,
        }
        (folder / "job.json").write_text(json.dumps(job))
        (folder / "ceiling.py").write_text(CEILING)
        done = subprocess.run(  # noqa: S603 - the script above
            [sys.executable, str(folder / "ceiling.py"), str(folder / "job.json")],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"vLLM did not run:\n{done.stderr[-2000:]}")
        found = json.loads((folder / "out.json").read_text())
    return Run(found["seconds"], found["texts"])


def served_runs(model: str, body: dict[str, Any], repeats: int) -> Run:
    """Time the service, with one client for all requests, as a runner has."""
    # A tenant of its own each time: no run finds what the one before it left in the cache.
    bodies = ({**body, "tenant": f"run-{number}"} for number in count())
    with served(model) as url, asyncio.Runner() as runner:
        client = HttpGenerator(url, in_flight=REQUESTS_IN_FLIGHT)
        run = timed(lambda: runner.run(over_http(client, next(bodies))), repeats)
        runner.run(client.aclose())
    return run


def timed(work: Callable[[], list[str]], repeats: int, *, is_warm: bool = False) -> Run:
    """Run once to warm up, unless it is warm, and then time each run."""
    seconds, texts = [], [] if is_warm else work()
    for _ in range(repeats):
        begun = time.perf_counter()
        texts = work()
        seconds.append(time.perf_counter() - begun)
    return Run(seconds, texts)


def measure(
    model: str, *, n: int, max_tokens: int, rounds: int, repeats: int, seed: int
) -> dict[str, Any]:
    """Time the four ways in turns on the same points; return rows and how alike the texts are."""
    body = body_for(draw_points(n, seed), max_tokens)
    warm = body_for(draw_points(min(16, n), seed + 1), max_tokens)
    service = create_service(GeneratorSettings(model=model))
    facts = service._writer.engine.facts
    request = GenerateRequest.model_validate(body)

    async def batched() -> list[str]:
        answer = await service.generate(request)
        return [instruction.text for instruction in answer.instructions]

    def alone() -> list[str]:
        return one_at_a_time(service, body)

    one_at_a_time(service, warm)
    ways: dict[str, Run] = {}
    with asyncio.Runner() as runner:
        for _ in range(rounds):
            turn = {
                "a": timed(alone, 1, is_warm=True),
                "b": timed(lambda: runner.run(batched()), repeats),
            }
            if find_spec("vllm") is not None and find_spec("ray") is not None:
                turn["d"] = ceiling(model, service, body, repeats)
                turn["c"] = served_runs(model, body, repeats)
            for way, run in turn.items():
                before = ways[way].seconds if way in ways else []
                ways[way] = Run([*before, *run.seconds], run.texts)
        runner.run(service.aclose())
    return {
        "rows": [_row(way, n, ways[way].seconds) for way in sorted(ways)],
        "engine": {"dtype": facts.dtype, "device": facts.device, "hidden": facts.hidden_size},
        "same_texts_as_b": {way: _alike(ways[way].texts, ways["b"].texts) for way in ways},
        "ratios": _ratios({way: n / statistics.median(run.seconds) for way, run in ways.items()}),
    }


def _row(way: str, n: int, seconds: list[float]) -> dict[str, Any]:
    return {
        "way": way,
        "name": NAMES[way],
        "seconds": seconds,
        "per_second": n / statistics.median(seconds),
    }


def _alike(texts: Sequence[str], others: Sequence[str]) -> float:
    same = sum(one.strip() == other.strip() for one, other in zip(texts, others, strict=True))
    return same / len(texts)


def _ratios(rates: dict[str, float]) -> dict[str, float]:
    pairs = (("c", "d"), ("c", "a"), ("b", "a"), ("c", "b"))
    return {f"{x}/{y}": rates[x] / rates[y] for x, y in pairs if x in rates and y in rates}


def main() -> None:
    """Run and, unless it is a smoke run, record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="32 soft prompts, nothing written")
    parser.add_argument("--model", default=str(MODEL_PATH), help="a folder or a Hugging Face id")
    parser.add_argument("--n", type=int, default=500, help="soft prompts")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="turns that each way takes")
    parser.add_argument("--repeats", type=int, default=5, help="of all but (a) in each turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="generate", help="of the result file")
    chosen = parser.parse_args()
    size = {
        "n": 32 if chosen.smoke else chosen.n,
        "max_tokens": chosen.max_tokens,
        "rounds": 1 if chosen.smoke else chosen.rounds,
        "repeats": 1 if chosen.smoke else chosen.repeats,
    }
    found = measure(chosen.model, **size, seed=chosen.seed)
    table = Table("way", "instructions/s", "same texts as b")
    for row in found["rows"]:
        way = row["way"]
        share = f"{found['same_texts_as_b'][way]:.1%}"
        table.add_row(f"{way}  {row['name']}", f"{row['per_second']:.1f}", share)
    console = Console()
    console.print(table)
    console.print({name: round(value, 2) for name, value in found["ratios"].items()})
    if not chosen.smoke:
        shown = Path(chosen.model).name if Path(chosen.model).is_dir() else chosen.model
        content = {"model": shown, "size": size, "seed": chosen.seed, **found}
        console.print(f"written to {record(chosen.name, content).name}")


if __name__ == "__main__":
    main()
