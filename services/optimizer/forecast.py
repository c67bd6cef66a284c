"""What a job will have cost at its end, from its running totals alone. Pure and cheap.

Until the first answer this is the estimate. Every answer then moves the mean cost of the next ones
from the guess to what was seen, weighed by how sure either is, and narrows the interval. How many
answers are still to come follows from the budget: of calls directly, of tokens, money or time by
the mean cost. Nothing is forecast beyond a budget, since nothing is spent beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from scipy.special import stdtrit

from instructzero.contracts import Budget, Expected, Forecast
from services.optimizer.jobs import SEARCH_SHARE_OF_TIME
from services.optimizer.learned import Learned
from services.optimizer.outlook import NOTHING, Guess, Outlook, Rates, Spent

LEVEL = 0.90
QUANTILE = NormalDist().inv_cdf(0.5 + LEVEL / 2)
SPREAD = 0.6
"""Guess at the standard deviation of one answer's cost over its mean, before any was measured."""
DIGITS = (0, 0, 9, 1)
"""Decimals of calls, tokens, money and time."""
FREEDOM = 3
"""How many instructions, or steps, that guess counts for beside those that were seen."""


class Mean(NamedTuple):
    """The mean of what further evaluations cost, and how their average may deviate from it.

    `below` and `above` are variances of what is believed of the mean, `spread` is the variance that
    one evaluation adds to the sum of many, `quantile` the interval's half-width in deviations.
    """

    mean: float
    below: float
    above: float
    spread: float
    quantile: float = QUANTILE

    def average(self, n: float) -> Guess:
        """Return the average over n further evaluations with its interval."""
        single = self.spread / max(n, 1.0)
        low = self.mean - self.quantile * math.sqrt(self.below + single)
        high = self.mean + self.quantile * math.sqrt(self.above + single)
        return Guess(max(low, 0.0), self.mean, high)

    def times(self, share: Mean) -> Mean:
        """Return the mean cost where only a share of the evaluations costs anything."""
        square = share.mean**2
        return Mean(
            self.mean * share.mean,
            square * self.below + self.mean**2 * share.below,
            square * self.above + self.mean**2 * share.above,
            share.mean * self.spread + self.mean**2 * share.spread,
            self.quantile,
        )


def spent_all(spent: Spent, *, has_price: bool) -> Forecast:
    """Return the forecast of a job that buys nothing more: what it has spent."""
    known = [round(each, digits) for each, digits in zip(spent.totals(), DIGITS, strict=True)]
    return _forecast([(each, each, each) for each in known], has_price=has_price)


def foresee(budget: Budget, outlook: Outlook, spent: Spent, learned: Learned) -> Forecast:
    """Return what the job will have cost when it ends, each with its 90 % interval.

    The interval joins what the cost of an answer and what the time for one leave open; its lower
    end also allows for a search that ends early.
    """
    means = _means(outlook, spent, learned)
    totals, expected = spent.totals(), Rates(*(mean.mean for mean in means))

    def left(rates: Rates) -> int:
        return _n_left(budget, outlook, spent, learned, rates)

    def end(rates: Rates, n: int) -> Rates:
        """Return the totals if n more evaluations cost so much each."""
        return Rates(*(so_far + n * rate for so_far, rate in zip(totals, rates, strict=True)))

    n_left = left(expected)
    averages = [mean.average(n_left) for mean in means]
    ends = [Rates(*(each.low for each in averages)), Rates(*(each.high for each in averages))]
    costs = [rates._replace(seconds=expected.seconds) for rates in ends]
    times = [expected._replace(seconds=rates.seconds) for rates in ends]
    found = _joined(
        end(expected, n_left),
        [end(rates, left(rates)) for rates in costs],
        [end(rates, left(rates)) for rates in times],
        end(expected, _n_at_least(outlook, learned, n_left)),
        end(expected, n_left + _n_uncertain(budget, learned)),
    )
    limits = (budget.calls, budget.tokens, budget.usd, budget.seconds)
    return _forecast(
        [_within(*bounds) for bounds in zip(found, totals, limits, DIGITS, strict=True)],
        has_price=outlook.usd is not None or totals.usd > 0,
    )


Amounts = tuple[float, float, float]
"""The lower end, what is expected, the upper end."""


def _joined(
    expected: Rates, costs: Sequence[Rates], times: Sequence[Rates], short: Rates, long: Rates
) -> list[Amounts]:
    """Join deviations that have nothing to do with each other: by the root of their squares."""
    found = []
    for index, middle in enumerate(expected):
        reach = [[one[index] for one in pair] for pair in (costs, times)]
        below = math.hypot(*(max(middle - min(pair), 0.0) for pair in reach))
        above = math.hypot(*(max(max(pair) - middle, 0.0) for pair in reach))
        ends = min(middle - below, short[index]), max(middle + above, long[index])
        found.append((ends[0], middle, ends[1]))
    return found


def _within(amounts: Amounts, so_far: float, limit: float | None, digits: int) -> Amounts:
    """Round amounts, and keep them between what is spent already and what may be spent."""
    most = math.inf if limit is None else max(limit, so_far)
    low, expected, high = (min(max(round(each, digits), so_far), most) for each in amounts)
    return low, expected, high


def _forecast(amounts: Sequence[Amounts], *, has_price: bool) -> Forecast:
    calls, tokens, usd, seconds = amounts
    return Forecast(
        calls=Expected[int](expected=int(calls[1]), interval=(int(calls[0]), int(calls[2]))),
        tokens=Expected[int](expected=int(tokens[1]), interval=(int(tokens[0]), int(tokens[2]))),
        usd=Expected[float](expected=usd[1], interval=(usd[0], usd[2])) if has_price else None,
        seconds=Expected[float](expected=seconds[1], interval=(seconds[0], seconds[2])),
    )


def _n_at_least(outlook: Outlook, learned: Learned, n_left: int) -> int:
    """Return how many evaluations there will be if the search ends as early as it may."""
    if learned.final_from is not None:
        return n_left
    if outlook.may_stop_early:
        return min(n_left, outlook.final_evaluations)
    return max(n_left - outlook.leftover_evaluations, 0)


def _n_uncertain(budget: Budget, learned: Learned) -> int:
    """Return 1 where a cheap last evaluation may still fit into what is left."""
    limits = (budget.tokens, budget.usd, budget.seconds)
    return int(learned.final_from is None and any(limit is not None for limit in limits))


def _n_left(budget: Budget, outlook: Outlook, spent: Spent, learned: Learned, rates: Rates) -> int:
    """Return how many evaluations are still to come if they cost so much each."""
    totals, final = spent.totals(), outlook.final_evaluations
    limits = (budget.calls, budget.tokens, budget.usd, budget.seconds)
    whole = [_fit(*bound) for bound in zip(limits, totals, rates, strict=True)]
    if learned.final_from is not None:
        n = learned.final_from + learned.final_evaluations - spent.evaluations
        return _whole(min([n, *whole]))
    failed = spent.failed_calls / spent.evaluations if spent.evaluations else 0.0
    planned = spent.evaluations * outlook.calls_each + spent.failed_calls + spent.in_doubt_calls
    search = [  # the search counts an answer from the cache like a bought call
        _fit(budget.calls, planned + final * outlook.calls_each, outlook.calls_each + failed),
        _fit(budget.tokens, totals.tokens + final * outlook.tokens.expected, rates.tokens),
        _fit(budget.usd, totals.usd + final * (outlook.usd or NOTHING).expected, rates.usd),
        _fit(budget.seconds, spent.seconds, rates.seconds, SEARCH_SHARE_OF_TIME),
    ]
    if outlook.most_evaluations is not None:
        search.append(outlook.most_evaluations - spent.evaluations)
    return _whole(min(max(min(search), 0.0) + final, *whole))


def _fit(limit: float | None, used: float, rate: float, share: float = 1.0) -> float:
    """Return how many evaluations fit into a share of a limit, inf without one."""
    if limit is None:
        return math.inf
    left = share * limit - used
    return left / rate if rate > 0 else math.copysign(math.inf, left)


def _whole(n: float) -> int:
    """Return a number of evaluations; where nothing known bounds it, none is promised."""
    return max(math.floor(n + 1e-9), 0) if math.isfinite(n) else 0


def _means(outlook: Outlook, spent: Spent, learned: Learned) -> tuple[Mean, Mean, Mean, Mean]:
    """Return the mean cost of an evaluation to come: calls, tokens, money, time."""
    share, n, arms = _bought_share(spent), spent.bought, learned.arms
    tokens = _mean(outlook.tokens, Seen(n, spent.tokens, n, arms, learned.tokens_variance))
    usd = Mean(0.0, 0.0, 0.0, 0.0)
    if outlook.usd is not None or spent.usd:
        seen = Seen(n, spent.usd, n, arms, learned.usd_variance)
        usd = _mean(outlook.usd or NOTHING, seen)
    n, steps = learned.evaluations, learned.steps
    timed = Seen(n, learned.seconds, steps, steps, learned.seconds_variance())
    if not n:  # the first step is under way: all the time there was
        timed = Seen(spent.evaluations, spent.seconds, 1, 0, 0.0)
    calls = _calls(outlook, spent)
    return calls.times(share), tokens.times(share), usd.times(share), _mean(outlook.seconds, timed)


class Seen(NamedTuple):
    """Observations of a cost.

    Attributes:
        n: how many.
        total: their sum.
        parts: how many of them are taken to be independent where no variance is known.
        groups: how many groups the variance was measured between.
        variance: what one more adds to the variance of the sum of many.
    """

    n: int
    total: float
    parts: int
    groups: int
    variance: float


def _mean(guess: Guess, seen: Seen) -> Mean:
    """Return what is believed of a mean cost.

    The guess counts by its own width, so it is forgotten as soon as the observations tell more; by
    as much as it was wrong it is taken to have been less sure of itself.
    """
    below, above = (((edge - guess.expected) / QUANTILE) ** 2 for edge in (guess.low, guess.high))
    if seen.n <= 0:
        return Mean(guess.expected, below, above, (SPREAD * guess.expected) ** 2)
    mean, freedom = seen.total / seen.n, max(seen.groups - 1, 0)
    guessed = (SPREAD * mean) ** 2 * seen.n / seen.parts
    spread = (FREEDOM * guessed + freedom * seen.variance) / (FREEDOM + freedom)
    noise, wrong = spread / seen.n, (mean - guess.expected) ** 2
    below, above = below + wrong, above + wrong
    prior = (below + above) / 2
    return Mean(
        guess.expected + (1.0 - _share(noise, prior)) * (mean - guess.expected),
        below * _share(noise, below),
        above * _share(noise, above),
        spread,
        float(stdtrit(FREEDOM + freedom, 0.5 + LEVEL / 2)),
    )


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest > 0 else 0.0


def _calls(outlook: Outlook, spent: Spent) -> Mean:
    """Return the calls of a bought evaluation: as many as it needs, and those that fail."""
    if spent.bought <= 0:
        return Mean(outlook.calls_each, 0.0, 0.0, 0.0)
    calls = (spent.calls - spent.in_doubt_calls) / spent.bought
    failed = spent.failed_calls / spent.bought
    spread = failed * (1 + failed)
    return Mean(calls, spread / spent.bought, spread / spent.bought, spread)


def _bought_share(spent: Spent) -> Mean:
    """Return the share of evaluations that are bought, not found in the cache.

    An instruction that was tried before has all its answers in the cache, so that instructions are
    counted, not answers.
    """
    if not spent.cached:
        return Mean(1.0, 0.0, 0.0, 0.0)
    per_trial = max(spent.evaluations / max(spent.trials, 1), 1.0)
    bought, cached = spent.bought / per_trial + 0.5, spent.cached / per_trial + 0.5
    share = bought / (bought + cached)
    variance = share * (1 - share)
    doubt = variance / (bought + cached + 1)
    return Mean(share, doubt, doubt, variance * per_trial)
