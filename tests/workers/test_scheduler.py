"""The scheduler's guarantees, over random arrivals, sizes, classes and keys."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.scheduler import LOOK_AHEAD, PATIENCE, Resident, by_urgency, open_ranks, schedule

RANKS = 3


@dataclass(frozen=True)
class FixedLimits:
    """The same limit for every key; riders are free up to `riders` images."""

    images: int
    riders: int = 1000

    def limit(self, key: Hashable) -> int:
        return self.images

    def free(self, key: Hashable, images: int) -> int:
        return self.riders


def resident(name: str, **fields: object) -> Resident:
    return Resident(**({"id": name, "batch_key": "k", "rank": 1, "arrival": int(name)} | fields))  # type: ignore[arg-type]


def ids(batch: tuple[Resident, ...]) -> list[str]:
    return [r.id for r in batch]


populations = st.lists(
    st.builds(
        Resident,
        id=st.just(""),
        batch_key=st.sampled_from("ab"),
        rank=st.integers(0, RANKS - 1),
        arrival=st.just(0),
        num_images=st.integers(1, 8),
        exclusive=st.booleans(),
        waited=st.integers(0, PATIENCE + 4),
    ),
    max_size=12,
).map(lambda items: [replace(r, id=str(i), arrival=i) for i, r in enumerate(items)])
limits = st.builds(FixedLimits, images=st.integers(1, 16), riders=st.integers(1, 16))


@given(populations, limits)
def test_a_batch_is_compatible_within_the_limit_and_led_by_the_most_urgent(
    residents: list[Resident], limits: FixedLimits
) -> None:
    batch = schedule(residents, limits)
    assert bool(batch) == bool(residents)
    if not batch:
        return
    leader = by_urgency(residents)[0]
    assert batch[0] == leader
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(residents)
    assert {r.batch_key for r in batch} == {leader.batch_key}
    if any(r.exclusive for r in batch):
        assert len(batch) == 1
    images = sum(r.num_images for r in batch)
    assert images <= max(limits.images, leader.num_images)


@given(populations, limits)
def test_nobody_stands_outside_a_batch_that_still_had_a_seat_for_it(
    residents: list[Resident], limits: FixedLimits
) -> None:
    batch = schedule(residents, limits)
    if not batch or batch[0].exclusive:
        return
    images = sum(r.num_images for r in batch)
    for left in set(residents) - set(batch):
        entitled = left.rank <= batch[0].rank or left.is_overdue
        if left.exclusive or left.batch_key != batch[0].batch_key or not entitled:
            continue
        # Seats are given in order of urgency: a later, smaller member may have taken the rest.
        order = by_urgency(residents)
        ahead = sum(r.num_images for r in batch if order.index(r) < order.index(left))
        assert ahead + left.num_images > limits.images or images > limits.images


@given(populations, limits, st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_the_list(
    residents: list[Resident], limits: FixedLimits, random: object
) -> None:
    shuffled = list(residents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert schedule(shuffled, limits) == schedule(residents, limits)


def test_an_interactive_newcomer_leads_the_next_step() -> None:
    video = resident("0", rank=2, batch_key="video")
    image = resident("1", rank=0, batch_key="image")
    assert ids(schedule([video, image], FixedLimits(4))) == ["1"]


def test_a_less_urgent_member_rides_only_where_it_is_free() -> None:
    urgent, patient = resident("0", rank=0), resident("1", rank=2)
    assert ids(schedule([urgent, patient], FixedLimits(4, riders=2))) == ["0", "1"]
    assert ids(schedule([urgent, patient], FixedLimits(4, riders=1))) == ["0"]


def test_a_rider_that_is_overdue_needs_no_free_seat() -> None:
    overdue = resident("0", rank=2, waited=PATIENCE)
    urgent = resident("1", rank=0)
    assert ids(schedule([urgent, overdue], FixedLimits(4, riders=1))) == ["0", "1"]


def test_within_a_class_the_oldest_leads_and_a_smaller_one_fills_the_gap() -> None:
    first, large, small = (
        resident("0", num_images=2),
        resident("1", num_images=3),
        resident("2", num_images=2),
    )
    assert ids(schedule([small, large, first], FixedLimits(4))) == ["0", "2"]


def test_a_leader_larger_than_the_limit_steps_alone() -> None:
    assert ids(schedule([resident("0", num_images=8), resident("1")], FixedLimits(4))) == ["0"]


def test_a_deterministic_job_shares_with_nobody_wherever_it_stands() -> None:
    alone, other = resident("0", exclusive=True), resident("1")
    assert ids(schedule([alone, other], FixedLimits(8))) == ["0"]
    assert ids(schedule([replace(alone, arrival=2), other], FixedLimits(8))) == ["1"]


class Turns(RuleBasedStateMachine):
    """Arrivals, steps and departures in any order; the bound on waiting is checked throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.residents: dict[str, Resident] = {}
        self.arrivals = 0
        self.most = 0
        self.limits = FixedLimits(4, riders=2)

    @rule(
        key=st.sampled_from("abc"),
        rank=st.integers(0, RANKS - 1),
        num_images=st.integers(1, 6),
        exclusive=st.booleans(),
    )
    def arrive(self, key: str, rank: int, num_images: int, exclusive: bool) -> None:
        self.arrivals += 1
        name = str(self.arrivals)
        self.residents[name] = Resident(name, key, rank, self.arrivals, num_images, exclusive)
        self.most = max(self.most, len(self.residents))

    @rule(turns=st.integers(1, 12))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            chosen = set(ids(schedule(list(self.residents.values()), self.limits)))
            assert bool(chosen) == bool(self.residents)
            self.residents = {
                name: replace(r, waited=0 if name in chosen else r.waited + 1)
                for name, r in self.residents.items()
            }
            self.check_the_bound()

    @precondition(lambda self: self.residents)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.residents.pop(data.draw(st.sampled_from(sorted(self.residents))))

    @invariant()
    def check_the_bound(self) -> None:
        for r in self.residents.values():
            assert r.waited <= PATIENCE + self.most - 1


Turns.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestTurns = Turns.TestCase


def claimable(residents: list[Resident], limits: FixedLimits, capacity: int = 32) -> int:
    return open_ranks(residents, limits, capacity=capacity, num_ranks=RANKS)


def test_an_empty_engine_claims_any_class() -> None:
    assert claimable([], FixedLimits(1)) == RANKS


def test_a_free_seat_is_offered_to_every_class_and_a_full_batch_only_to_more_urgent_ones() -> None:
    standard = [resident("0"), resident("1")]
    assert claimable(standard, FixedLimits(3)) == RANKS
    assert claimable(standard, FixedLimits(2)) == 1
    assert claimable([resident("0", rank=0)], FixedLimits(1)) == 0


def test_a_deterministic_leader_leaves_no_seat() -> None:
    assert claimable([resident("0", exclusive=True)], FixedLimits(16)) == 1


def test_jobs_that_do_not_fit_the_batch_are_not_hoarded() -> None:
    residents = [resident(str(i), batch_key=i) for i in range(LOOK_AHEAD)]
    assert claimable(residents, FixedLimits(16)) == RANKS
    residents.append(resident("99", batch_key=99))
    assert claimable(residents, FixedLimits(16)) == 1


@given(populations, limits, st.integers(1, 40))
def test_nothing_is_claimed_beyond_the_capacity(
    residents: list[Resident], limits: FixedLimits, capacity: int
) -> None:
    ranks = claimable(residents, limits, capacity)
    assert 0 <= ranks <= RANKS
    if sum(r.num_images for r in residents) >= capacity:
        assert ranks == 0
    elif all(r.rank > 0 for r in residents):
        assert ranks > 0
