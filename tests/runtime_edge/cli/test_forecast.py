"""How far work has come, and how long it will take, from what was foreseen and what has been."""

from __future__ import annotations

import pytest

from runtime_edge.cli.forecast import Forecast, announcement, duration


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(forecast: Forecast, clock: Clock, name: str, seconds: float) -> None:
    forecast.begin(name, None)
    clock.now += seconds
    forecast.end()


def test_what_is_left_falls_as_stages_end(clock: Clock) -> None:
    forecast = Forecast([("text", 30), ("codes", 60), ("check", 10)], clock)
    assert (forecast.total, forecast.done, forecast.left) == (100, 0, 100)
    run(forecast, clock, "text", 30)
    assert (forecast.done, forecast.left) == pytest.approx((30, 70))
    run(forecast, clock, "codes", 60)
    run(forecast, clock, "check", 10)
    assert (forecast.done, forecast.left) == pytest.approx((100, 0))


def test_stages_that_take_twice_as_long_make_the_rest_longer(clock: Clock) -> None:
    forecast = Forecast([("text", 50), ("codes", 50)], clock)
    run(forecast, clock, "text", 100)
    assert forecast.done == 50
    assert 85 < forecast.left < 100  # twice as long, but for some trust in what was foreseen


def test_steps_tell_how_far_a_stage_is(clock: Clock) -> None:
    forecast = Forecast([("codes", 100)], clock)
    forecast.begin("cpu: codes", 10)
    assert forecast.stage == "cpu: codes"
    forecast.advance(5)
    clock.now += 100
    assert forecast.done == pytest.approx(60)  # the sixth step has begun, and may be done
    assert forecast.left > 60
    forecast.advance(5)
    assert 90 < forecast.done < 100
    forecast.end()
    assert (forecast.done, forecast.left, forecast.stage) == (100, 0, "")


def test_time_moves_a_stage_without_steps_and_never_ends_it(clock: Clock) -> None:
    forecast = Forecast([("check", 10)], clock)
    forecast.begin("check", None)
    clock.now += 5
    assert forecast.done == pytest.approx(5)
    clock.now += 500
    assert 9 < forecast.done < 10


def test_what_was_not_foreseen_changes_nothing(clock: Clock) -> None:
    forecast = Forecast([("check", 10)], clock)
    run(forecast, clock, "download", 500)
    assert (forecast.done, forecast.left) == (0, 10)
    run(Forecast([], clock), clock, "download", 500)
    assert Forecast([], clock).left == 0


def test_what_does_not_come_is_no_longer_waited_for(clock: Clock) -> None:
    forecast = Forecast([("text", 30), ("codes", 60), ("check", 10)], clock)
    run(forecast, clock, "codes", 60)  # the text was there
    assert (forecast.done, forecast.left) == pytest.approx((90, 10))


def test_a_stage_inside_another_counts_once(clock: Clock) -> None:
    forecast = Forecast([("calibrate", 60), ("passes", 10), ("check", 30)], clock)
    forecast.begin("passes", None)
    clock.now += 5
    run(forecast, clock, "calibrate", 60)
    assert forecast.done == pytest.approx(65)
    clock.now += 5
    forecast.end()
    assert (forecast.done, forecast.left) == pytest.approx((70, 30))


def test_a_stage_of_two_variants_comes_twice(clock: Clock) -> None:
    forecast = Forecast([("passes", 10), ("check", 10), ("passes", 20), ("check", 10)], clock)
    for name, done in (("a: passes", 10), ("a: check", 20), ("b: passes", 40), ("b: check", 50)):
        run(forecast, clock, name, 1)
        assert forecast.done == done


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (8.4, "8 s"), (59.4, "59 s"), (59.6, "1 min"), (131, "2 min 10 s"), (598, "10 min"),
     (1234, "20 min"), (3900, "1 h 5 min"), (7200, "2 h")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_announcement_names_what_takes_long() -> None:
    stages = [("text", 30.0), ("passes", 0.2), ("codes", 60.0), ("weights", 1.5), ("codes", 25.0), ("check", 12.0)]
    assert announcement(stages) == "about 2 min 10 s: text 30 s, codes 1 min 25 s, check 12 s"
