"""Examples from files: layouts, splits, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructzero.contracts import DatasetSpec, Example, TaskSpec
from instructzero.datasets import load_task
from instructzero.errors import InvalidSpec
from instructzero.splits import Read, Source, TooFewExamples, split

BENCHMARK = Path(__file__).parents[2] / "shared" / "data" / "instruction_induction"
needs_benchmark = pytest.mark.skipif(
    not BENCHMARK.is_dir(), reason="the instruction-induction files are not beside this checkout"
)
TASKS = sorted(file.stem for file in (BENCHMARK / "induce").glob("*.json")) or ["none"]


def induction(folder: Path, task: str, **numbers: int) -> TaskSpec:
    spec = DatasetSpec(format="instruction_induction", path=str(folder), task=task, **numbers)
    return load_task(spec)


def write_induction(
    folder: Path, name: str, induce: list[dict[str, Any]], execute: list[dict[str, Any]]
) -> Path:
    for part, records in (("induce", induce), ("execute", execute)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        examples = {str(n): record for n, record in enumerate(records, start=1)}
        document = {"metadata": {"num_examples": len(records)}, "examples": examples}
        (folder / part / f"{name}.json").write_text(json.dumps(document))
    return folder


def pairs(n: int, prefix: str = "q") -> list[dict[str, Any]]:
    return [{"input": f"{prefix}{i}", "output": f"a{i}"} for i in range(n)]


def refused(action: Any) -> str:
    with pytest.raises(InvalidSpec) as caught:
        action()
    assert caught.value.errors[0].pointer.startswith("/task/dataset/")
    return caught.value.detail


@needs_benchmark
@pytest.mark.parametrize("task", TASKS)
def test_every_benchmark_file_loads_with_the_default_numbers(task):
    loaded = induction(BENCHMARK, task)
    assert len(loaded.exemplars) == 5
    assert 5 <= len(loaded.validation) <= 20
    assert 15 <= len(loaded.test) <= 100
    inputs = [e.input for e in (*loaded.exemplars, *loaded.validation, *loaded.test)]
    assert len(inputs) == len(set(inputs))


@needs_benchmark
def test_cause_and_effect_shows_both_sentences_and_asks_for_the_cause():
    loaded = induction(BENCHMARK, "cause_and_effect")
    causes_first = 0
    for example in loaded.test:
        assert example.input.startswith("Sentence 1: ")
        assert example.output[0] in example.input
        causes_first += example.input.startswith(f"Sentence 1: {example.output[0]}")
    assert 0 < causes_first < len(loaded.test)


@needs_benchmark
def test_rhymes_accept_every_rhyme_but_not_the_word_itself():
    for example in induction(BENCHMARK, "rhymes").test:
        assert example.input not in example.output
    assert any(len(e.output) > 3 for e in induction(BENCHMARK, "rhymes").test)


@needs_benchmark
def test_translations_accept_every_possible_translation():
    place = next(e for e in induction(BENCHMARK, "translation_en-es").test if e.input == "place")
    assert place.output[0] == "lugar"
    assert "sitio" in place.output


def test_common_concept_shows_every_item_and_accepts_every_concept(tmp_path):
    records = [
        {"concept": f"c{i}.", "items": [f"x{i}", f"y{i}"], "all_common_concepts": [f"c{i}.", "z"]}
        for i in range(12)
    ]
    loaded = induction(write_induction(tmp_path, "mine", records[:8], records[8:]), "mine")
    shown = {e.input: e.output for e in (*loaded.exemplars, *loaded.validation, *loaded.test)}
    assert shown["x3, y3"] == ("c3.", "z")


def test_an_unseen_task_file_of_the_same_layout_loads(tmp_path):
    folder = write_induction(tmp_path, "unseen", pairs(30), pairs(12, "t"))
    loaded = induction(folder, "unseen")
    assert [len(loaded.exemplars), len(loaded.validation), len(loaded.test)] == [5, 20, 12]


def test_inputs_of_the_test_file_are_never_exemplars_or_validation(tmp_path):
    folder = write_induction(tmp_path, "leaky", pairs(40), pairs(10))
    loaded = induction(folder, "leaky")
    seen = {e.input for e in (*loaded.exemplars, *loaded.validation)}
    assert len(loaded.test) == 10
    assert not seen & {e.input for e in loaded.test}


def test_a_repeated_input_keeps_every_answer_that_any_record_accepts(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [*pairs(30), {"input": "q3", "output": ["a3", "another"]}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    loaded = load_task(DatasetSpec(format="jsonl", path=str(file)))
    everything = (*loaded.exemplars, *loaded.validation, *loaded.test)
    assert len(everything) == 30
    assert next(e for e in everything if e.input == "q3").output == ("a3", "another")


def test_jsonl_reads_named_columns_numbers_and_several_outputs(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [{"question": i, "answers": [i + 1, f"{i + 1}.0"]} for i in range(40)]
    file.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    spec = DatasetSpec(format="jsonl", path=str(file), input="question", output="answers")
    example = load_task(spec).validation[0]
    assert example.output == (str(int(example.input) + 1), f"{int(example.input) + 1}.0")


def test_csv_reads_quoted_cells_with_commas_and_line_breaks(tmp_path):
    file = tmp_path / "data.csv"
    rows = "".join(f'"text {i},\nmore","yes"\r\n' for i in range(30))
    file.write_text("text,label\r\n" + rows, newline="")
    loaded = load_task(DatasetSpec(format="csv", path=str(file), input="text", output="label"))
    assert "\nmore" in loaded.validation[0].input


def test_a_path_is_looked_up_beside_the_job_file_first(tmp_path, monkeypatch):
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    for folder, name in ((beside, "here"), (elsewhere, "cwd")):
        folder.mkdir()
        rows = (json.dumps(row) for row in pairs(10, name))
        (folder / "d.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(elsewhere)
    spec = DatasetSpec(format="jsonl", path="d.jsonl")
    assert load_task(spec, relative_to=beside).exemplars[0].input.startswith("here")
    assert load_task(spec, relative_to=tmp_path).exemplars[0].input.startswith("cwd")


def test_the_seed_decides_the_split_and_the_order_of_the_file_does_not(tmp_path):
    forwards, backwards = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lines = [json.dumps(row) for row in pairs(200)]
    forwards.write_text("\n".join(lines))
    backwards.write_text("\n".join(reversed(lines)))
    first = load_task(DatasetSpec(format="jsonl", path=str(forwards), seed=1))
    assert load_task(DatasetSpec(format="jsonl", path=str(backwards), seed=1)) == first
    assert load_task(DatasetSpec(format="jsonl", path=str(forwards), seed=2)) != first


@given(
    n=st.integers(0, 60),
    numbers=st.fixed_dictionaries(
        {},
        optional={
            "exemplars": st.integers(1, 20),
            "validation": st.integers(5, 30),
            "test": st.integers(0, 30),
        },
    ),
)
def test_written_numbers_are_kept_exactly_or_refused_with_a_number_that_works(n, numbers):
    pool = Source("f", [Read(Example(input=f"q{i}", output=("a",)), f"q{i}") for i in range(n)])
    spec = DatasetSpec(format="jsonl", path="f", **numbers)
    try:
        parts = split(pool, None, spec)
    except TooFewExamples as error:
        assert f"f has {n} different examples" in str(error)  # noqa: PT017 - either is right
        if f"lower {error.field} to " in str(error):
            lowered = int(str(error).rpartition(" ")[2])
            split(pool, None, spec.model_copy(update={error.field: lowered}))
        return
    sizes = dict(zip(("exemplars", "validation", "test"), map(len, parts), strict=True))
    assert all(sizes[name] == number for name, number in numbers.items())
    assert len({e.input for part in parts for e in part}) == sum(sizes.values()) <= n


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"input": "a", "output": "b"}\n{"input": ', "line 2 is not JSON"),
        (b'{"question": "a", "answer": "b"}', "has no column 'input'; it has question, answer"),
        (b"[1, 2]", "line 1 is not an object"),
        (b'{"input": "a", "output": null}', "line 1: the column 'output' is empty"),
        (b'{"input": "a", "output": []}', "line 1: output"),
        (b'{"input": {"a": 1}, "output": "b"}', "expected text or a number, found dict"),
        (b'{"input": "a\\u0007", "output": "b"}', "control character"),
        (b"\xff\xfe\x00", "is not UTF-8 (byte 0)"),
        (b'{"input": "a", "output": "b"}', "has 1 different examples, 6 are needed"),
        (b"[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_a_bad_jsonl_file_is_refused_with_the_line_and_the_reason(tmp_path, content, message):
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    assert message in refused(lambda: load_task(DatasetSpec(format="jsonl", path=str(file))))


def test_a_csv_file_without_the_column_lists_those_it_has(tmp_path):
    file = tmp_path / "data.csv"
    file.write_text("text;label\na;b\n")
    detail = refused(lambda: load_task(DatasetSpec(format="csv", path=str(file), input="text")))
    assert "it has text;label" in detail


def test_a_missing_file_and_an_unknown_task_say_what_there_is(tmp_path):
    assert "no such file" in refused(
        lambda: load_task(DatasetSpec(format="csv", path=str(tmp_path / "x.csv")))
    )
    folder = write_induction(tmp_path, "mine", pairs(9), pairs(9, "t"))
    assert "there are mine" in refused(lambda: induction(folder, "yours"))


def test_too_small_a_task_says_how_many_there_are_how_many_are_needed_and_what_to_lower(tmp_path):
    folder = write_induction(tmp_path, "small", pairs(18), pairs(9, "t"))
    detail = refused(lambda: induction(folder, "small", exemplars=5, validation=20))
    assert "induce/small.json has 18 different examples" in detail
    assert "25 are needed (exemplars 5 + validation 20): lower validation to 13" in detail
    assert "lower test to 9" in refused(lambda: induction(folder, "small", test=10))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'has no "examples"'),
        ('{"examples": {"1": {"input": "a"}}}', "example 1 has no 'output'; it has input"),
        ('{"examples": {"1": 3}}', "example 1 is not an object"),
    ],
)
def test_a_broken_task_file_is_refused_with_the_example(tmp_path, document, message):
    folder = write_induction(tmp_path, "mine", pairs(9), pairs(9, "t"))
    (folder / "induce" / "mine.json").write_text(document)
    assert message in refused(lambda: induction(folder, "mine"))
