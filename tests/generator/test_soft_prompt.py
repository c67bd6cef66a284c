from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instructzero.contracts import ProjectionSpec
from services.generator.soft_prompt import (
    Projection,
    Space,
    draw_seed,
    fingerprint,
    table_spread,
)

SPACE = Space(
    model="owner/name",
    revision="abc",
    weights="w",
    engine="transformers",
    engine_version="5.0",
    dtype="float32",
    meta_prompt="chat-1",
    frame="text",
)


def draw(hidden_size: int = 64, spread: float = 1.0, **fields: Any) -> Projection:
    return Projection.draw(ProjectionSpec(**fields), hidden_size=hidden_size, spread=spread)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("dimension", [1, 10, 100])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_soft_token_varies_as_much_as_the_embedding_table_times_the_scale(kind, dimension, scale):
    table = torch.from_numpy(np.random.default_rng(0).normal(3.0, 0.07, (2_000, 256)))
    projection = draw(
        256, table_spread([table]), kind=kind, intrinsic_dim=dimension, scale=scale, seed=3
    )
    points = np.random.default_rng(1).uniform(-1, 1, (4_000, dimension))
    soft = np.stack(projection.soft_prompts(points))
    deviation = np.sqrt(soft.reshape(len(points), -1).var(0).mean())
    assert deviation == pytest.approx(scale * 0.07, rel=0.06 if dimension == 1 else 0.03)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_entries_have_the_distribution_that_was_asked_for(kind):
    entries = draw(2_000, kind=kind, intrinsic_dim=10).matrix.ravel()
    unit = entries / np.sqrt(3 / 10) if kind == "normal" else entries / (3 / np.sqrt(10))
    assert abs(unit.mean()) < 0.01
    assert unit.std() == pytest.approx(1 if kind == "normal" else 3**-0.5, rel=0.01)
    assert (np.abs(unit) <= 1).all() == (kind == "uniform")


def test_a_seed_gives_the_same_matrix_for_ever():
    matrix = draw(4, n_tokens=1, intrinsic_dim=3, seed=7).matrix
    again = draw(4, n_tokens=1, intrinsic_dim=3, seed=7).matrix
    np.testing.assert_array_equal(matrix, again)
    # Worked out once: a change here is a change of every stored search space (raise ALGORITHM).
    np.testing.assert_allclose(matrix[0], FIRST_ROW, rtol=1e-6)
    assert not np.array_equal(matrix, draw(4, n_tokens=1, intrinsic_dim=3, seed=8).matrix)


FIRST_ROW = [0.36868572, 1.5764973, 1.5487537]


@given(st.lists(st.lists(st.floats(-1, 1), min_size=5, max_size=5), min_size=1, max_size=6))
def test_a_points_soft_prompt_does_not_depend_on_its_neighbours(points):
    projection = draw(16, intrinsic_dim=5)
    together = projection.soft_prompts(points)
    for point, soft in zip(points, together, strict=True):
        np.testing.assert_array_equal(soft, projection.soft_prompts([point])[0])
        assert soft.shape == (5, 16)


def test_the_middle_of_the_box_is_the_zero_vector():
    assert not draw(intrinsic_dim=4).soft_prompts([[0.0] * 4])[0].any()


def test_the_spread_of_a_table_ignores_the_mean_of_a_coordinate_and_the_chunks():
    table = torch.tensor([[1.0, 10.0], [3.0, 10.0], [1.0, 14.0], [3.0, 14.0]])
    worked_by_hand = ((1.0 + 4.0) / 2) ** 0.5  # variances 1 and 4
    assert table_spread([table]) == pytest.approx(worked_by_hand)
    assert table_spread(table.split(3)) == pytest.approx(worked_by_hand)
    assert table_spread([table.bfloat16()]) == pytest.approx(worked_by_hand)


def test_every_ingredient_changes_the_fingerprint():
    spec = ProjectionSpec()
    known = {fingerprint(SPACE, spec, "prefix"), fingerprint(SPACE, spec, "suffix")}
    for field in dataclasses.fields(Space):
        known.add(fingerprint(dataclasses.replace(SPACE, **{field.name: "other"}), spec, "prefix"))
    others = {"seed": 1, "kind": "normal", "scale": 2.0, "n_tokens": 6, "intrinsic_dim": 11}
    assert others.keys() == ProjectionSpec.model_fields.keys()
    for name, value in others.items():
        known.add(fingerprint(SPACE, spec.model_copy(update={name: value}), "prefix"))
    assert len(known) == 2 + len(dataclasses.fields(Space)) + len(others)
    assert fingerprint(SPACE, ProjectionSpec(), "prefix") in known


def test_two_texts_for_one_point_are_drawn_apart_and_a_point_keeps_its_draw():
    assert draw_seed(0, (0.1, 0.2), 0) == draw_seed(0, (0.1, 0.2), 0)
    seeds = {
        draw_seed(0, (0.1, 0.2), 0),
        draw_seed(0, (0.1, 0.2), 1),
        draw_seed(1, (0.1, 0.2), 0),
        draw_seed(0, (0.2, 0.1), 0),
    }
    assert len(seeds) == 4
