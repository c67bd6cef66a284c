"""Every strategy keeps the Protocol: bounded, deterministic, replayable, order-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement

from benchmarks.landscapes import SPECS, Landscape, play
from services.optimizer.search import make_strategy
from services.optimizer.search.coupled import coupled_process, fit_length
from services.optimizer.search.registry import STRATEGIES, BadOption, UnknownStrategy
from services.optimizer.search.similarity import answer_similarity
from services.optimizer.search.strategy import (
    Decision,
    Evaluation,
    GeneratedText,
    Problem,
    Room,
    Scored,
    Strategy,
)
from services.optimizer.search.whole_set import BARREN_POINTS

NAMES = sorted(STRATEGIES)


class Game:
    """A landscape, what was decided on it, and the answers in the order they came."""

    def __init__(self, n_validation: int = 20, seed: int = 0) -> None:
        spec = SPECS["twenty"]
        self.landscape = Landscape(spec, seed)
        self.n_validation = n_validation
        self.arms: dict[int, int] = {}
        self.texts: list[int] = []
        self.n_points = 0

    def carry_out(self, decision: Decision) -> tuple[list[GeneratedText], list[Scored]]:
        generated = []
        if decision.points:
            for offset, text in enumerate(self.landscape.text_of(np.array(decision.points))):
                arm = self.arms.setdefault(int(text), len(self.texts))
                if arm == len(self.texts):
                    self.texts.append(int(text))
                generated.append(GeneratedText(self.n_points + offset, arm, f"text {text}"))
        self.n_points += len(decision.points)
        scored = [
            Scored(
                pair.arm,
                pair.example,
                float(self.landscape.scores[self.texts[pair.arm], pair.example]),
                self.landscape.answer(self.texts[pair.arm], pair.example),
            )
            for pair in decision.evaluations
        ]
        return generated, scored


def problem(**changes: object) -> Problem:
    return Problem(**{"dim": 10, "n_validation": 20, "seed": 5, **changes})  # type: ignore[arg-type]


def steps(
    strategy: Strategy, game: Game, room_calls: int, *, shuffle: int | None = None, limit: int = 60
) -> list[Decision]:
    """Play to the end; check what every decision must keep."""
    decisions: list[Decision] = []
    bought: set[tuple[int, int]] = set()
    rng = np.random.default_rng(shuffle)
    while len(decisions) < limit:
        room = Room(calls=room_calls - len(bought))
        decision = strategy.propose(room)
        if decision is None:
            return decisions
        assert decision.points or decision.evaluations
        assert len(decision.evaluations) <= room_calls - len(bought)
        pairs = {(pair.arm, pair.example) for pair in decision.evaluations}
        assert len(pairs) == len(decision.evaluations)
        assert not pairs & bought, "a pair was bought twice"
        bought |= pairs
        assert all(abs(x) <= 1 for point in decision.points for x in point)
        json.dumps([decision.memo, decision.snapshot, list(map(dict, decision.point_notes))])
        strategy.decided(decision)
        generated, scored = game.carry_out(decision)
        if shuffle is not None:
            rng.shuffle(generated)  # type: ignore[arg-type]
            rng.shuffle(scored)  # type: ignore[arg-type]
            half = len(scored) // 2
            strategy.observe((), scored[:half])
            strategy.observe(generated, scored[half:])
        else:
            strategy.observe(generated, scored)
        decisions.append(decision)
    return decisions


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("calls", [1, 7, 60, 300])
def test_a_strategy_buys_within_its_room_and_recommends(name: str, calls: int) -> None:
    strategy = make_strategy(name, problem(calls=calls))
    decisions = steps(strategy, Game(), calls)
    found = strategy.recommend()
    assert found is not None
    assert 0 <= found.mean <= 1
    spent = sum(len(decision.evaluations) for decision in decisions)
    assert spent > 0.6 * calls - 20


@pytest.mark.parametrize("name", NAMES)
def test_a_replayed_strategy_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    calls = 200
    game, whole = Game(), make_strategy(name, problem(calls=calls))
    decisions = steps(whole, game, calls)
    for cut in {1, len(decisions) // 2, len(decisions) - 1}:
        replayed, again, spent = make_strategy(name, problem(calls=calls)), Game(), 0
        for decision in decisions[:cut]:
            journaled = Decision(**json.loads(json.dumps(vars(decision), default=vars)))
            replayed.decided(restored(journaled))
            replayed.observe(*again.carry_out(decision))
            spent += len(decision.evaluations)
        assert replayed.propose(Room(calls=calls - spent)) == decisions[cut]


def restored(decision: Decision) -> Decision:
    """A decision as the journal gives it back, with its pairs as objects again."""
    from services.optimizer.steps import decision_from_json

    content: Mapping[str, object] = {
        **vars(decision),
        "evaluations": [list(dict(pair).values()) for pair in decision.evaluations],  # type: ignore[call-overload]
    }
    return decision_from_json(content)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_in_which_answers_arrive_changes_nothing(name: str) -> None:
    in_order = steps(make_strategy(name, problem(calls=150)), Game(), 150)
    shuffled = steps(make_strategy(name, problem(calls=150)), Game(), 150, shuffle=1)
    assert in_order == shuffled


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_another_search(name: str) -> None:
    one = steps(make_strategy(name, problem(calls=100)), Game(), 100, limit=2)
    other = steps(make_strategy(name, problem(calls=100, seed=6)), Game(), 100, limit=2)
    assert one != other


@pytest.mark.parametrize("name", NAMES)
def test_a_score_that_was_asked_for_ends_the_search(name: str) -> None:
    strategy = make_strategy(name, problem(calls=2000, stop_score=0.05))
    decisions = steps(strategy, Game(), 2000)
    assert sum(len(decision.evaluations) for decision in decisions) < 2000


@pytest.mark.parametrize("name", NAMES)
def test_given_instructions_are_tried_without_any_point(name: str) -> None:
    strategy = make_strategy(name, problem(calls=60, given=("mine",)))
    game = Game()
    game.texts.append(0)
    game.arms[0] = 0
    decisions = steps(strategy, game, 60)
    assert any(pair.arm == 0 for decision in decisions for pair in decision.evaluations)


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_that_always_writes_the_same_ends_the_search(name: str) -> None:
    class OneText(Game):
        def carry_out(self, decision: Decision) -> tuple[list[GeneratedText], list[Scored]]:
            generated = [
                GeneratedText(self.n_points + i, 0, "same") for i in range(len(decision.points))
            ]
            self.n_points += len(decision.points)
            return generated, [Scored(p.arm, p.example, 1.0, "a") for p in decision.evaluations]

    strategy = make_strategy(name, problem(calls=5000))
    decisions = steps(strategy, OneText(), 5000, limit=200)
    assert len(decisions) < 200
    assert sum(len(d.evaluations) for d in decisions) <= 20
    assert sum(len(d.points) for d in decisions) <= BARREN_POINTS + 1000


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_whose_texts_are_all_rejected_ends_the_search(name: str) -> None:
    class NoText(Game):
        def carry_out(self, decision: Decision) -> tuple[list[GeneratedText], list[Scored]]:
            generated = [
                GeneratedText(self.n_points + i, None, "") for i in range(len(decision.points))
            ]
            self.n_points += len(decision.points)
            return generated, []

    strategy = make_strategy(name, problem(calls=500))
    assert len(steps(strategy, NoText(), 500, limit=200)) < 200
    assert strategy.recommend() is None


@pytest.mark.parametrize("n_points", [25, 100])
def test_expected_improvement_is_not_flat(n_points: int) -> None:
    """The share of the box with EI > 1e-6 (standardised scores) after some points."""
    rng = np.random.default_rng(n_points)
    game = Game()
    points = rng.uniform(-1, 1, (n_points, 10))
    texts = game.landscape.text_of(points)
    arms = np.unique(texts)
    table = game.landscape.scores[arms][:, :20]
    answers = [[game.landscape.answer(int(arm), j) for j in range(20)] for arm in arms]
    rows = np.searchsorted(arms, texts)
    means = table.mean(axis=1)
    scores = torch.tensor(((means - means.mean()) / means.std())[rows])
    noise = torch.full_like(scores, 0.3)
    similarity = torch.tensor(answer_similarity(answers, "exact")[np.ix_(rows, rows)])
    inside = torch.tensor((points + 1) / 2)
    model = coupled_process(
        inside, scores, noise, similarity, fit_length(inside, scores, noise), 1.0
    )
    with torch.no_grad():
        best = float(model.posterior(inside).mean.max())
        box = torch.tensor(rng.uniform(0, 1, (500, 1, 10)))
        improvement = LogExpectedImprovement(model, best_f=best)(box)
    assert bool(improvement.isfinite().all())
    assert float((improvement.exp() > 1e-6).double().mean()) > 0.25
    assert float(improvement.exp().max()) > 1e-3


def test_unknown_strategies_and_options_are_refused() -> None:
    with pytest.raises(UnknownStrategy, match="choose from"):
        make_strategy("magic", problem())
    with pytest.raises(BadOption, match="unknown option 'speed'"):
        make_strategy("default", problem(), {"speed": 1})
    with pytest.raises(BadOption, match="takes a value like"):
        make_strategy("default", problem(), {"chunk": "many"})
    with pytest.raises(BadOption, match="at least 1"):
        make_strategy("instructzero", problem(), {"batch": 0})
    with pytest.raises(BadOption, match="similarity must be"):
        make_strategy("instructzero", problem(), {"similarity": "cosine"})


def test_a_search_that_may_stop_by_itself_ends_when_no_better_instruction_is_likely() -> None:
    landscape = Landscape(SPECS["easy"], 2)
    whole = play("default", landscape, 900, 2, watch="chance_of_better")
    stopped = play("default", landscape, 900, 2, {"stop_chance": 0.8})
    assert whole.calls[-1] == 900
    reached = next(n for n, chance in zip(whole.calls, whole.watched, strict=True) if chance < 0.8)
    assert stopped.calls[-1] == reached < 900
    with pytest.raises(BadOption, match="stop_chance"):
        make_strategy("default", problem(), {"stop_chance": 1.0})


def test_the_state_shows_the_leaders_best_first_and_a_slice_of_the_box() -> None:
    strategy, game = make_strategy("default", problem(calls=120)), Game()
    steps(strategy, game, 120)
    figures = cast(dict[str, Any], strategy.state())
    plane = figures["slice"]
    assert [len(row) for row in plane["value"]] == [len(plane["grid"])] * len(plane["grid"])
    assert min(min(row) for row in plane["value"]) >= 0
    assert max(max(row) for row in plane["value"]) > 0
    means = [leader["mean"] for leader in figures["leaders"]]
    assert means == sorted(means, reverse=True)
    assert figures["leaders"][0]["arm"] == strategy.recommend().arm  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("n_right", "calls", "expected"), [(75, 300, 1), (80, 300, 0), (75, 200, 0)]
)
def test_while_calls_are_left_the_recommendation_stays_until_another_is_clearly_better(
    n_right: int, calls: int, expected: int
) -> None:
    """The leader, arm 1, has 74 of 100 right and the other more; both have cost 200 calls."""
    job = problem(n_validation=100, given=("the other", "the leader"), calls=calls)
    pairs = tuple(Evaluation(arm, example) for arm in (0, 1) for example in range(100))
    scores = [
        Scored(pair.arm, pair.example, float(pair.example < (n_right, 74)[pair.arm]), "")
        for pair in pairs
    ]
    strategy = make_strategy("default", job)
    strategy.decided(Decision(evaluations=pairs, memo={"leader": 1}))
    strategy.observe((), scores)
    found = strategy.recommend()
    assert found is not None
    assert found.arm == expected


@pytest.mark.slow
def test_the_default_search_beats_random_at_equal_calls() -> None:
    """Sign test over 20 landscapes, alpha = .021 one-sided: at least 15 wins."""
    wins = 0
    for seed in range(20):
        landscape = Landscape(SPECS["medium"], 1000 + seed)
        mine = play("default", landscape, 300, seed, {"pool": 300}).at(300)
        theirs = play("random", landscape, 300, seed, {"examples": 20}).at(300)
        wins += mine > theirs
    assert wins >= 15
