from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from instructzero.contracts import MetricName
from instructzero.errors import InvalidSpec
from services.commands.job_files import as_written, load_job

GOOD = {
    "name": "letters",
    "task": {
        "exemplars": [{"input": "a", "output": "b"}],
        "validation": [{"input": f"v{n}", "output": ["b", "c"]} for n in range(6)],
        "baseline": "Say the next letter.",
    },
    "target": "demo",
    "budget": {"calls": 50},
}


def write(folder: Path, content: object) -> Path:
    path = folder / "job.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8")
    return path


def changed(place: str, value: object) -> dict[str, object]:
    content = json.loads(json.dumps(GOOD))
    *parents, last = place.split(".")
    at = content
    for parent in parents:
        at = at.setdefault(parent, {})
    at[last] = value
    return content


def test_an_inline_job_is_read_as_it_stands(tmp_path):
    spec = load_job(write(tmp_path, GOOD))
    assert spec.metric.name is MetricName.EXACT_MATCH
    assert spec.task.validation[0].output == ("b", "c")
    assert spec.budget.calls == 50


def test_a_dataset_is_looked_up_beside_the_job_file_and_keeps_the_rest_of_the_task(
    tmp_path, monkeypatch
):
    rows = "".join(json.dumps({"q": f"q{n}", "a": f"a{n}"}) + "\n" for n in range(40))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text(rows)
    dataset = {
        "format": "jsonl",
        "path": "data/pairs.jsonl",
        "input": "q",
        "output": "a",
        "exemplars": 3,
        "validation": 10,
        "test": 20,
    }
    content = GOOD | {
        "task": {"dataset": dataset, "baseline": "Answer.", "instructions": ["Do it."]}
    }
    path = write(tmp_path, content)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    task = load_job(path).task
    assert (len(task.exemplars), len(task.validation), len(task.test)) == (3, 10, 20)
    assert task.baseline == "Answer."
    assert task.instructions == ("Do it.",)


@pytest.mark.parametrize(
    ("content", "place", "advice"),
    [
        (changed("bugdet", {}), "bugdet", "did you mean budget?"),
        (changed("task.baselin", "x"), "task.baselin", "did you mean baseline?"),
        (changed("budget", {"cals": 3}), "budget.cals", "did you mean calls?"),
        (changed("budget", {}), "budget", "set at least one of"),
        (changed("budget", {"calls": -1}), "budget.calls", "greater than or equal to 1"),
        (changed("budget", 100), "budget", "name: value"),
        (changed("task.validation", []), "task.validation", "at least 5"),
        (changed("task.validation", "file.csv"), "task.validation", "must be a list"),
        (changed("task", {"exemplars": []}), "task.validation", "or task.dataset"),
        (
            changed("task.exemplars", [{"input": 1, "output": "b"}]),
            "task.exemplars[0].input",
            "put it in quotes",
        ),
        (
            changed("task.exemplars", [{"input": "a", "output": [True]}]),
            "task.exemplars[0].output[0]",
            "put it in quotes",
        ),
        (changed("metric", "exact"), "metric.name", "input should be"),
        (changed("metric", {"name": "judge"}), "metric", "rubric"),
        (changed("template", "no placeholders"), "template", "{instruction}"),
        (changed("seed", "zero"), "seed", "valid integer"),
        (changed("target", "two words"), "target", "pattern"),
        (changed("target", "a\x07b"), "target", "pattern"),
        (changed("name", "a\x07b"), "name", "control character"),
        (changed("generator", {"n_tokens": 0}), "generator.n_tokens", "greater than"),
        (changed("strategy", {"name": "magic"}), "strategy.name", "input should be"),
        (changed("task.dataset", {"format": "xml", "path": "x"}), "task.dataset.format", "jsonl"),
        (
            changed("task.dataset", {"format": "csv", "path": "none.csv"}),
            "task.dataset.path",
            "no such file",
        ),
        (
            changed("task.dataset", {"format": "csv", "path": "none.csv"}),
            "task.validation",
            "leave one of them out",
        ),
        ("task: [unclosed", "the file", "line 1"),
        ("name: a\nname: b\n", "the file", "'name' is given twice"),
        ("- a\n- b\n", "the file", "name: value"),
        ("", "the file", "is empty"),
        ("name: 2024-99-99\n", "the file", "cannot be read"),
        ("a: !!python/object/apply:os.system [ls]\n", "the file", "not valid YAML"),
        ("[" * 5000, "the file", "nested too deeply"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_a_wrong_field_is_named_as_it_is_written(tmp_path, content, place, advice):
    with pytest.raises(InvalidSpec) as caught:
        load_job(write(tmp_path, content))
    lines = {as_written(problem.pointer): problem.detail for problem in caught.value.errors}
    lines["the file"] = "" if lines else caught.value.detail
    assert place in lines
    assert advice in lines[place]
    assert place in caught.value.detail or place == "the file"


def test_all_wrong_fields_are_named_at_once(tmp_path):
    content = changed("task.dataset", {"format": "csv", "path": "none.csv", "sed": 1})
    for name in ("exemplars", "validation"):
        del content["task"][name]
    content |= {"seed": -1, "colour": "red"}
    with pytest.raises(InvalidSpec) as caught:
        load_job(write(tmp_path, content))
    places = {as_written(problem.pointer) for problem in caught.value.errors}
    assert places == {"task.dataset.sed", "seed", "colour"}


def test_a_missing_file_and_a_folder_are_refused_in_words(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InvalidSpec, match="cannot be read"):
            load_job(path)


def test_bytes_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(InvalidSpec, match="not UTF-8"):
        load_job(path)


def test_shared_nodes_do_not_grow_without_bound(tmp_path):
    layers = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(InvalidSpec):
        load_job(write(tmp_path, "l0: &l0 [x]\n" + layers))
