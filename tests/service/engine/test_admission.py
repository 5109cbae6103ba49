"""What may come in, with numbers only."""

import pytest

from service.engine.admission import RETRY_STEP_S, Admission, Asked, Place
from service.engine.item import ServedStudent
from service.engine.limits import EngineLimits
from service.engine.observer import SilentObserver
from service.errors import Overloaded

NOW, ITEM_TOKENS = 100.0, 16


@pytest.fixture
def admission():
    return Admission(EngineLimits(max_queue_items=1000, token_budget=4096, slots=1), SilentObserver())


@pytest.fixture
def student(runner):
    return ServedStudent(name="scripted", version=1, student=runner)


def asked(deadline_s, *, items=1):
    return Asked(items, items * ITEM_TOKENS, NOW + deadline_s, NOW + deadline_s)


def give(admission, student, items):
    """Work that was admitted."""
    lane = admission.lane(student)
    lane.items, lane.tokens = items, items * ITEM_TOKENS
    admission.took(lane, now=NOW)
    return lane


def starve(admission):
    """The processor had other things to do, for long."""
    for moment in range(1000):
        admission.stretch.note(moment * 0.1, busy_s=1e-3, waiting=True)


def test_what_an_idle_engine_would_take_is_taken_whatever_was_learned(admission, student):
    starve(admission)
    assert admission.stretch.factor > 10
    own_s = admission.finish_s(admission.lane(student), asked(1.0))
    admission.check(student, asked(2 * own_s), now=NOW)
    lane = give(admission, student, 1)
    with pytest.raises(Overloaded):
        admission.check(student, asked(2 * own_s), now=NOW)
    lane.items = lane.tokens = 0
    admission.check(student, asked(2 * own_s), now=NOW)


def test_what_is_promised_takes_room_until_it_is_left(admission, student):
    lane = admission.lane(student)
    place = Place(lane, 600)
    with pytest.raises(Overloaded, match="too many items"):
        admission.check(student, asked(1e9, items=401), now=NOW)
    admission.check(student, asked(1e9, items=400), now=NOW)
    admission.check(student, asked(1e9, items=1001), now=NOW, room=False)
    assert lane.backlog_s() == pytest.approx(600 * ITEM_TOKENS * lane.forecast.token_s)
    for _ in range(2):
        place.leave()
    assert (lane.promised, lane.backlog_s()) == (0, 0.0)


def test_another_students_work_is_no_idle_engine(admission, student, runner):
    starve(admission)
    own_s = admission.finish_s(admission.lane(student), asked(1.0))
    other = ServedStudent(name="other", version=1, student=runner)
    give(admission, other, 1)
    with pytest.raises(Overloaded):
        admission.check(student, asked(2 * own_s), now=NOW)


def test_more_ahead_is_never_sooner(admission, student):
    lane = admission.lane(student)
    finishes = []
    for items in (0, 1, 5, 50, 500):
        give(admission, student, items)
        finishes.append(admission.finish_s(lane, asked(1.0)))
    assert finishes == sorted(finishes)


def test_retry_after_comes_in_steps(admission, student):
    told = set()
    for items in range(1, 200):
        give(admission, student, items)
        with pytest.raises(Overloaded) as refused:
            admission.check(student, asked(1e-9), now=NOW)
        told.add(refused.value.retry_after_s)
    assert all(wait_s / RETRY_STEP_S == pytest.approx(round(wait_s / RETRY_STEP_S)) for wait_s in told)
    assert len(told) < 10
