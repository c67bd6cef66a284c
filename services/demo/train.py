"""Train the demo model: `python -m services.demo.train --seed 0`.

Both roles are learned at once. Two auxiliary heads on a middle layer must find the task and the
steering read-outs at each answer token; without them the generator never learns to be steered.
They are thrown away at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from services.demo import MODEL_PATH, chat, steering
from services.demo.corpus import TASKS
from services.demo.lessons import Batch, Lessons, all_texts
from services.demo.network import Network, Shape, initialise, save_network

STEPS = 5000
THREADS = 2
LONG_TASKS = tuple(t for t in TASKS if t in {"larger", "smaller"} or t.endswith("_word"))
LONG_TASKS += ("count_words",)
SHORT_TASKS = tuple(task for task in TASKS if task not in LONG_TASKS)
_EXECUTOR, _SHORT, _LONG = (128, 28), (40, 56), (24, 78)
"""Rows and length of the three kinds of batches."""
_LONG_EVERY = 3
_WARM_UP, _FLAT, _LAST_RATE = 50, 0.2, 0.02
_MATRIX_RATE, _OTHER_RATE = 0.02, 3e-3
_READOUT_WEIGHT, _TASK_WEIGHT = 0.5, 0.1
_LOG_EVERY, _SAVE_EVERY_SECONDS = 50, 120.0


@dataclass(frozen=True)
class LossRecord:
    """Mean losses (nats per token; mean square for the read-outs) since the record before."""

    step: int
    seconds: float
    executor: float
    generator: float
    readouts: float
    tasks: float


class Trainer:
    """One run: a network, its auxiliary heads, its optimizers and its lessons."""

    def __init__(self, *, seed: int, steps: int, shape: Shape | None = None) -> None:
        """Draw the initial parameters.

        Args:
            seed: of parameters and lessons.
            steps: the learning rate falls to its end over these.
            shape: of the network; its vocabulary is set by the corpus.
        """
        self.tokenizer = chat.build_tokenizer(all_texts())
        vocabulary = self.tokenizer.get_vocab_size()
        shape = Shape(**{**asdict(shape or Shape(0)), "vocabulary": vocabulary})
        generator = torch.Generator().manual_seed(seed)
        self.network = Network(shape)
        initialise(self.network, generator)
        self._heads = nn.ModuleList(
            nn.Linear(shape.hidden, size) for size in (len(steering.IN_USE), len(TASKS))
        )
        for parameter in self._heads.parameters():
            nn.init.normal_(parameter, 0.0, 0.05, generator=generator)
        self.steps = steps
        self._lessons = Lessons(self.tokenizer, hidden_size=shape.hidden, seed=seed)
        self._optimizers = _optimizers(self.network, self._heads)

    def step(self, number: int) -> tuple[float, float, float, float]:
        """Take one step on one batch of each role; return executor, generator, aux losses."""
        rate = _rate(number, self.steps)
        for optimizer, base in zip(self._optimizers, (_MATRIX_RATE, _OTHER_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
        executor, _, _ = self._losses(self._lessons.executor(*_EXECUTOR))
        torch.autograd.backward(executor)
        is_long = number % _LONG_EVERY == _LONG_EVERY - 1
        sizes, tasks = (_LONG, LONG_TASKS) if is_long else (_SHORT, SHORT_TASKS)
        generator, readouts, names = self._losses(self._lessons.generator(*sizes, tasks))
        torch.autograd.backward(generator + _READOUT_WEIGHT * readouts + _TASK_WEIGHT * names)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return executor.item(), generator.item(), readouts.item(), names.item()

    def save(self, folder: Path) -> None:
        """Write a model that transformers, vLLM and the demo target can open."""
        folder.mkdir(parents=True, exist_ok=True)
        chat.save_tokenizer(self.tokenizer, folder)
        save_network(self.network, folder)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        table = self.network.table
        embeddings = F.embedding(torch.from_numpy(batch.ids), table)
        length, hidden = embeddings.shape[1:]
        if batch.soft is not None and batch.is_soft is not None:
            soft = torch.from_numpy(batch.soft) * table.detach().std()
            embeddings = torch.where(torch.from_numpy(batch.is_soft), soft, embeddings)
        positions = torch.from_numpy(batch.positions)
        with torch.autocast("cpu", torch.bfloat16):
            last, tap, _ = self.network.model(embeddings, self.network.rotations[:, :length])
            logits = F.linear(last.reshape(-1, hidden)[positions], table).float()
        loss = F.cross_entropy(logits, torch.from_numpy(batch.targets))
        if batch.tasks is None or batch.readouts is None:
            return loss, loss, loss
        seen = F.rms_norm(tap.reshape(-1, hidden)[positions].float(), (hidden,))
        rows = positions // length
        return (
            loss,
            F.mse_loss(self._heads[0](seen), torch.from_numpy(batch.readouts)[rows]),
            F.cross_entropy(self._heads[1](seen), torch.from_numpy(batch.tasks)[rows]),
        )


def train(
    trainer: Trainer, *, until: int, folder: Path, report: Callable[[LossRecord], None]
) -> list[LossRecord]:
    """Take steps up to `until`, saving every few minutes, and return the course of the losses."""
    started = saved = time.monotonic()
    records: list[LossRecord] = []
    recent: list[tuple[float, ...]] = []
    for number in range(until):
        recent.append(trainer.step(number))
        now = time.monotonic()
        if (number + 1) % _LOG_EVERY == 0 or number + 1 == until:
            means = [round(fmean(column), 4) for column in zip(*recent, strict=True)]
            records.append(LossRecord(number + 1, round(now - started, 1), *means))
            report(records[-1])
            recent.clear()
        if now - saved > _SAVE_EVERY_SECONDS:
            trainer.save(folder)
            saved = now
    trainer.save(folder)
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save the model and a log of its losses."""
    parser = argparse.ArgumentParser(description="Train the demo model from its seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="length of the whole schedule")
    parser.add_argument("--until", type=int, help="stop after so many steps of the schedule")
    parser.add_argument("--out", type=Path, default=MODEL_PATH)
    options = parser.parse_args(arguments)
    if options.steps < 1 or (options.until or 1) < 1:
        parser.error("--steps and --until must be 1 or more")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    torch.set_num_threads(THREADS)
    trainer = Trainer(seed=options.seed, steps=options.steps)
    until = min(options.until or options.steps, options.steps)

    def report(record: LossRecord) -> None:
        left = record.seconds / record.step * (until - record.step)
        sys.stderr.write(
            f"step {record.step} of {until}  {record.seconds:.0f} s, {left:.0f} s left  "
            f"executor {record.executor:.3f}  generator {record.generator:.3f}  "
            f"read-outs {record.readouts:.3f}  tasks {record.tasks:.3f}\n"
        )
        sys.stderr.flush()

    records = train(trainer, until=until, folder=options.out, report=report)
    log = {"seed": options.seed, "steps": options.steps, "losses": [asdict(r) for r in records]}
    path = options.out / "training.json"
    path.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def _optimizers(network: Network, heads: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    matrices = [p for n, p in network.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in network.named_parameters() if p.ndim != 2 or "embed" in n]
    others += list(heads.parameters())
    return (
        torch.optim.Muon(matrices, lr=_MATRIX_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=_OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    )


def _rate(number: int, steps: int) -> float:
    """Return the share of the full learning rate: warm-up, a flat part, a line down."""
    done = number / steps
    fall = 1.0 if done < _FLAT else max(_LAST_RATE, (1 - done) / (1 - _FLAT))
    return min(1.0, (number + 1) / _WARM_UP) * fall


if __name__ == "__main__":
    main()
