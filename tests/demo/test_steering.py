import numpy as np
import pytest

from services.demo import steering
from services.demo.corpus import INSTRUCTIONS, PHRASES, RELATED, TASKS

READOUTS = steering.readout_matrix(128)


def label(task, **chosen):
    """The instruction for read-outs that are 0 but where given, by position."""
    values = np.zeros((1, steering.N_READOUTS), np.float32)
    for name, value in chosen.items():
        values[0, int(name[1:])] = value
    return steering.labels([TASKS.index(task)], values)[0]


def test_readouts_are_fixed_and_of_unit_variance():
    assert np.array_equal(READOUTS, steering.readout_matrix(128))
    assert np.allclose((READOUTS**2).sum(0).mean(), 1, atol=0.1)


def test_reading_soft_tokens_worked_by_hand():
    # Mean of the two is (2, 0); times sqrt(2).
    tokens = np.array([[1, 0], [3, 0]], np.float32)
    read = steering.read(tokens, np.array([[1.0, 0.5], [7.0, 7.0]], np.float32))
    assert read == pytest.approx([2 * 2**0.5, 2**0.5])


@pytest.mark.parametrize("task", TASKS)
def test_zero_soft_tokens_ask_for_the_task_itself(task):
    assert INSTRUCTIONS[label(task)].task == task


def test_a_strong_readout_chooses_the_related_task_the_grade_the_verb_and_the_phrase():
    related = RELATED["plural"][1]
    assert INSTRUCTIONS[label("plural", _2=9.0)].task == related
    grades = {20: "plural", 21: "plural"}
    exact = [INSTRUCTIONS[label("plural", **{f"_{p}": 5.0})].grade for p in grades]
    vague = [INSTRUCTIONS[label("plural", **{f"_{p}": -5.0})].grade for p in grades]
    assert min(exact) == 0
    assert max(vague) == 4
    assert label("plural", _25=9.0).startswith("Give ")
    grade = INSTRUCTIONS[label("plural")].grade
    assert PHRASES["plural"][grade][2] in label("plural", _32=9.0)


def test_a_small_step_rarely_changes_the_instruction():
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((200, 5, 128)).astype(np.float32)
    moved = tokens + 0.05 * rng.standard_normal(tokens.shape).astype(np.float32)
    numbers = [TASKS.index("color")] * 200
    before, after = (
        steering.labels(numbers, np.stack([steering.read(t, READOUTS) for t in group]))
        for group in (tokens, moved)
    )
    assert len(set(before)) > 30
    assert np.mean([a == b for a, b in zip(before, after, strict=True)]) > 0.75
