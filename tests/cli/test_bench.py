from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from instructzero.contracts import MetricName
from services.commands.bench import strategy_names
from services.commands.paper_scores import SCORES, paper_metric, paper_score
from services.demo.corpus import Pair, demo_task
from tests.cli.world import COMMAND, World, clean_environment, make_folder, wait_until


@pytest.fixture
def bench(folder, invoke):
    """Run a bench on a world in this process."""

    def run(*arguments: str) -> Result:
        return invoke(
            "bench", "job.yaml", "--json", *arguments, *folder.connections, folder=folder.path
        )

    return run


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A bench of the bundled model against the demo target, run to its end."""
    folder = make_folder(tmp_path_factory.mktemp("bench"), World())
    exemplars, validation, test = demo_task("antonym")
    folder.write_job(
        target="demo",
        task={
            "exemplars": examples(exemplars),
            "validation": examples(validation[:8]),
            "test": examples(test[:12]),
        },
    )
    command = ("bench", "job.yaml", "--strategies", "default,random", "--calls", "40", "--json")
    done = folder.command(*command, "--report", "page.html")
    assert done.returncode == 0, done.stderr
    return folder, command, done


def examples(pairs: list[Pair]) -> list[dict[str, str]]:
    return [{"input": text, "output": answer} for text, answer in pairs]


def test_strategies_stand_side_by_side_at_one_budget(real):
    folder, _, done = real
    found = json.loads(done.stdout)
    assert [row["strategy"] for row in found["rows"]] == ["default", "random"]
    for row in found["rows"]:
        assert row["paid"] <= row["calls"] <= 40
        assert row["interval"][0] <= row["score"] <= row["interval"][1]
        assert row["winner"]
        assert row["usd"] > 0
        assert row["seconds"] > 0
    assert found["paid_calls"] == found["paid_calls_of_this_run"] > 0
    assert done.stderr.startswith("Estimate for 2 jobs: about 80 calls")
    page = (folder.path / "page.html").read_text()
    assert page.count("<svg") == 1
    assert "strategies side by side" in page


def test_the_same_bench_again_buys_nothing_and_loads_no_model(real):
    folder, command, done = real
    again = folder.command(*command)
    first, second = json.loads(done.stdout), json.loads(again.stdout)
    assert again.returncode == 0
    assert second["rows"] == first["rows"]
    assert second["paid_calls_of_this_run"] == 0
    assert "Loading" not in again.stderr
    assert "Estimate" not in again.stderr


def test_a_shared_answer_is_paid_once_and_counted_twice(folder, bench):
    done = bench("--strategies", "random,ape", "--seeds", "2", "--calls", "60")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert folder.world.requests == found["paid_calls"] < found["calls"] <= 240
    assert folder.world.repeats == 0
    assert sum(row["paid"] for row in found["rows"]) == found["paid_calls"]
    assert found["strategies"]["random"]["seeds"] == 2


def test_a_strategy_added_later_joins_the_jobs_there_are(folder, bench):
    first = json.loads(bench("--strategies", "random", "--calls", "40").stdout)
    done = bench("--strategies", "random,ape", "--calls", "40")
    second = json.loads(done.stdout)
    assert second["rows"][0] == first["rows"][0]
    assert second["paid_calls_of_this_run"] == second["rows"][1]["paid"]
    assert "Estimate for 1 job of 2" in done.stderr


def test_an_interrupted_bench_goes_on_by_the_same_command(folder):
    folder.world.latency_seconds = 0.05
    command = ("bench", "job.yaml", "--json", "--strategies", "random", "--calls", "120")
    running = folder.start(*command, *folder.connections)
    wait_until(lambda: folder.world.requests > 20)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "The same command goes on" in err
    folder.world.latency_seconds = 0.0
    done = folder.command(*command, *folder.connections)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert folder.world.repeats == 0
    assert folder.world.requests == row["calls"] <= 120
    assert "are paid for already" in done.stderr


def make_dear(folder) -> None:
    content = yaml.safe_load((folder.path / "targets.yaml").read_text())
    content["targets"]["world"]["price"] = {"input_per_million": 5000, "output_per_million": 5000}
    (folder.path / "targets.yaml").write_text(yaml.safe_dump(content))


def test_a_dear_bench_needs_a_yes(folder, bench):
    make_dear(folder)
    refused = bench("--strategies", "random", "--calls", "40")
    assert refused.exit_code == 2
    assert "say --yes to agree" in refused.stderr
    assert folder.world.requests == 0
    agreed = bench("--strategies", "random", "--calls", "40", "--yes")
    assert agreed.exit_code == 0, agreed.stderr
    assert 0 < folder.world.requests <= 40


def test_a_person_at_a_terminal_is_asked_and_may_say_no(folder):
    make_dear(folder)
    ours, theirs = pty.openpty()
    os.write(ours, b"n\n")
    done = subprocess.run(
        [COMMAND, "bench", "job.yaml", "--strategies", "random", *folder.connections],
        cwd=folder.path, env=clean_environment(), stdin=theirs, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 1
    assert "This will cost about $" in done.stderr
    assert "Nothing was spent." in done.stderr
    assert folder.world.requests == 0


def test_a_target_that_refuses_ends_the_bench_before_the_next_job(folder, bench):
    folder.world.answer = lambda body: (404, {"error": {"message": "no model", "code": "x"}})
    done = bench("--strategies", "random,ape", "--calls", "40")
    assert done.exit_code == 1
    first, second = json.loads(done.stdout)["rows"]
    assert first["problem"]
    assert second["problem"] == "not started"
    assert "were not started" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--strategies", "default,best"], "there is no 'best'; there are default, instructzero"),
        (["--strategies", " , "], "--strategies: name at least one of default"),
        (["--seeds", "0"], "greater than or equal to 1"),
        (["--calls", "0"], "greater than or equal to 1"),
        (["--targets", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_a_bench_that_cannot_be_is_refused_in_words(folder, invoke, arguments, words):
    done = invoke("bench", "job.yaml", *folder.connections, *arguments, folder=folder.path)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert folder.world.requests == 0


def test_labels_that_leave_no_room_are_refused(folder, invoke):
    folder.write_job(labels={f"k{n}": "v" for n in range(19)})
    done = invoke("bench", "job.yaml", *folder.connections, folder=folder.path)
    assert done.exit_code == 2
    assert "leave at most 17 of these" in done.stderr


def test_a_strategy_named_twice_runs_once():
    assert strategy_names("ape, random,ape") == ("ape", "random")


# --- paper-tasks ----------------------------------------------------------------------------------


def write_tasks(path: Path, tasks: dict[str, tuple[list[Pair], list[Pair]]]) -> Path:
    for name, parts in tasks.items():
        for part, pairs in zip(("induce", "execute"), parts, strict=True):
            content = {str(n): pair for n, pair in enumerate(examples(pairs), start=1)}
            (path / part).mkdir(parents=True, exist_ok=True)
            (path / part / f"{name}.json").write_text(json.dumps({"examples": content}))
    return path


def tasks_folder(path: Path) -> Path:
    exemplars, validation, test = demo_task("antonym")
    pool = exemplars + validation
    return write_tasks(
        path / "tasks", {"antonyms": (pool, test[:12]), "negation": (pool[:3], test[:12])}
    )


def paper(folder, *arguments):
    return folder.command("paper-tasks", "tasks", "--calls", "40", "--json", *arguments)


def test_each_task_has_a_row_and_a_task_that_is_too_small_says_so(tmp_path):
    folder = make_folder(tmp_path, World())
    tasks_folder(tmp_path)
    done = paper(folder)
    assert done.returncode == 1, done.stderr
    good, small = json.loads(done.stdout)["rows"]
    assert (good["task"], good["paper_instructzero"], good["paper_ape"]) == ("antonyms", 0.85, 0.72)
    assert good["interval"][0] <= good["score"] <= good["interval"][1]
    assert good["calls"] <= 40
    assert small["score"] is None
    assert "has 3 different examples" in small["problem"]
    (page,) = (tmp_path / "runs").glob("paper-tasks-*.html")
    assert "antonyms" in page.read_text()

    again = paper(folder, "--tasks", "antonyms")
    found = json.loads(again.stdout)
    assert again.returncode == 0, again.stderr
    assert found["rows"] == [good]
    assert found["paid_calls_of_this_run"] == 0
    assert found["mean"]["paper_instructzero"] == 0.85


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "none is no folder"),
        (["empty"], "there is nothing to do"),
        (["tasks", "--tasks", "antonyms,colours"], "there is no 'colours'; there are antonyms"),
        (["tasks", "--tasks", ","], "names no task"),
        (["tasks", "--strategy", "best"], "--strategy: there is no 'best'"),
        (["tasks", "--strategy", "ape,random"], "--strategy takes one"),
        (["tasks", "--calls", "9", "--trials", "9"], "not both"),
        (["tasks", "--target", "nobody"], "registered are: demo"),
    ],
)
def test_paper_tasks_that_cannot_be_are_refused_in_words(tmp_path, invoke, arguments, words):
    tasks_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    done = invoke("paper-tasks", *arguments, folder=tmp_path)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("*.db"))


def test_several_targets_need_a_name(folder, invoke):
    tasks_folder(folder.path)
    content = yaml.safe_load((folder.path / "targets.yaml").read_text())
    content["targets"]["other"] = content["targets"]["world"]
    (folder.path / "targets.yaml").write_text(yaml.safe_dump(content))
    done = invoke("paper-tasks", "tasks", *folder.connections, folder=folder.path)
    assert done.exit_code == 2
    assert "--target NAME; registered are" in done.stderr


def test_each_task_is_scored_as_the_benchmark_scores_it():
    assert paper_metric("taxonomy_animal") is MetricName.EXACT_SET
    assert paper_metric("synonyms") is MetricName.CONTAINS
    assert paper_metric("informal_to_formal") is MetricName.F1
    assert paper_metric("antonyms") is MetricName.EXACT_MATCH


def test_the_papers_scores_have_the_papers_means():
    assert len(SCORES) == 32
    assert sum(score.instructzero for score in SCORES.values()) / 32 == pytest.approx(
        0.725, abs=0.002
    )
    assert sum(score.ape for score in SCORES.values()) / 32 == pytest.approx(0.521, abs=0.002)
    assert paper_score("ascii_word_recognition") == SCORES["ascii"]
    assert paper_score("colours") is None
