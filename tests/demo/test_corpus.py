import random

import pytest

from services.demo import corpus
from services.demo.corpus import INPUTS, INSTRUCTIONS, PHRASES, RELATED, TASKS, demo_task, executed
from services.demo.wording import ASKED, is_held_out_wording, reworded


@pytest.mark.parametrize("task", TASKS)
def test_a_demo_task_has_disjoint_sets_answered_by_its_own_rule(task):
    exemplars, validation, test = demo_task(task)
    assert (len(exemplars), len(validation)) == (5, 30)
    assert 4 < len(test) <= 100
    inputs = [given for given, _ in (*exemplars, *validation, *test)]
    assert len(set(inputs)) == len(inputs)
    for given, right in (*exemplars, *validation, *test):
        assert corpus.ANSWERS[task](given) == right


def test_a_demo_task_is_fixed_by_its_seed():
    assert demo_task("plural", seed=3) == demo_task("plural", seed=3)
    assert demo_task("plural", seed=3) != demo_task("plural", seed=4)


@pytest.mark.parametrize("task", TASKS)
def test_every_input_of_a_task_is_answerable_and_listed_once(task):
    assert len(set(INPUTS[task])) == len(INPUTS[task])
    assert all(corpus.expected(task, given) for given in INPUTS[task])


def test_an_input_of_another_kind_is_no_input_of_the_task():
    with pytest.raises(ValueError, match="'apple' is no input of sum"):
        corpus.expected("sum", "apple")


def test_there_are_1800_instructions_in_20_tasks_and_5_grades():
    assert len(TASKS) == 20
    assert len(INSTRUCTIONS) == 1800
    assert all([len(grade) for grade in PHRASES[task]] == [3] * 5 for task in TASKS)
    assert all(len(RELATED[task]) == 3 and task not in RELATED[task] for task in TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_exact_instructions_are_always_obeyed_and_vaguer_ones_less(task):
    inputs = INPUTS[task]
    obeyed = []
    for grade in range(5):
        meaning = INSTRUCTIONS[f"Write {PHRASES[task][grade][0]}."]
        hits = [executed(meaning, given) == corpus.expected(task, given) for given in inputs]
        obeyed.append(sum(hits) / len(hits))
    assert obeyed[0] == 1
    assert obeyed[1] > obeyed[4]
    assert obeyed[4] < 0.5


def test_an_instruction_that_cannot_apply_is_answered_unknown():
    assert executed(INSTRUCTIONS["Write the capital of the country."], "apple") == "unknown"
    assert executed(INSTRUCTIONS["Give a judgment."], "3 2") == "unknown"


@pytest.mark.parametrize("task", TASKS)
def test_without_an_instruction_no_answer_is_right(task):
    assert not any(executed(None, x) == corpus.expected(task, x) for x in INPUTS[task])


def test_inputs_are_held_out_only_where_a_task_generalises():
    for task in TASKS:
        share = sum(corpus.is_held_out(task, x) for x in INPUTS[task]) / len(INPUTS[task])
        assert share == 0 if task not in corpus.GENERALISING else 0.08 < share < 0.25


def test_no_free_wording_means_two_things():
    draw = random.Random(1)
    meanings = dict(INSTRUCTIONS)
    for _ in range(20_000):
        text, meaning = reworded(draw)
        assert meanings.setdefault(text, meaning) == meaning


def test_wordings_of_the_evaluation_and_a_tenth_of_the_free_ones_are_held_out():
    assert set(ASKED) == set(TASKS)
    assert all(is_held_out_wording(text) for texts in ASKED.values() for text in texts)
    assert not any(is_held_out_wording(text) for text in INSTRUCTIONS)
    draw = random.Random(2)
    texts = {reworded(draw)[0] for _ in range(5_000)}
    assert 0.05 < sum(map(is_held_out_wording, texts)) / len(texts) < 0.15
