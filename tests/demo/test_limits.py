import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.demo.limits import Limits, go_duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.12, "120ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (90.5, "1m30.5s"),
        (360, "6m0s"),
        (3723.5, "1h2m3.5s"),
        (59.9999, "1m0s"),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds, text):
    assert go_duration(seconds) == text


def test_a_full_minute_of_requests_goes_at_once_and_then_one_every_interval():
    clock = Clock()
    limits = Limits(requests_per_minute=3, clock=clock)
    assert [limits.enter(1) for _ in range(3)] == [None] * 3
    refusal = limits.enter(1)
    assert refusal.retry_after_seconds == pytest.approx(20)
    assert "limit of 3 requests per minute reached" in refusal.message
    clock.now += 20
    assert limits.enter(1) is None
    assert limits.enter(1) is not None


def test_a_refused_request_takes_nothing_from_the_other_bucket():
    limits = Limits(requests_per_minute=10, tokens_per_minute=100, clock=Clock())
    assert limits.enter(60) is None
    assert limits.enter(60) is not None
    assert limits.headers()["x-ratelimit-remaining-requests"] == "9"
    assert limits.headers()["x-ratelimit-remaining-tokens"] == "40"
    assert limits.headers()["x-ratelimit-reset-tokens"] == "36s"


def test_a_request_larger_than_a_whole_minute_is_told_that_waiting_does_not_help():
    refusal = Limits(tokens_per_minute=100, clock=Clock()).enter(101)
    assert refusal.retry_after_seconds is None
    assert "lower max_tokens" in refusal.message


def test_a_bucket_is_not_a_rounding_error_short():
    clock = Clock()
    limits = Limits(requests_per_minute=7, clock=clock)
    for _ in range(200):
        while (refusal := limits.enter(1)) is None:
            pass
        clock.now += refusal.retry_after_seconds
        assert limits.enter(1) is None


def test_places_in_flight_are_given_back():
    limits = Limits(in_flight=1)
    assert limits.enter(1) is None
    assert "in flight" in limits.enter(1).message
    limits.leave()
    assert limits.enter(1) is None


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60))
def test_no_minute_gives_more_than_twice_its_limit(moves):
    clock = Clock()
    limits = Limits(tokens_per_minute=60, clock=clock)
    taken = []
    for pause, tokens in moves:
        clock.now += pause
        if limits.enter(tokens) is None:
            taken.append((clock.now, tokens))
    for start, _ in taken:
        assert sum(n for at, n in taken if start <= at < start + 60) <= 2 * 60
