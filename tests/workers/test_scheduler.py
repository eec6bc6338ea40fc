"""The scheduler's guarantees, over random arrivals, sizes, classes, keys, limits and departures."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.roster import Resident, Roster
from workers.scheduler import LOOK_AHEAD, PATIENCE, leader, open_ranks, schedule

RANKS = 3
LARGEST = 8  # images of one job


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
    return Resident(**({"id": name, "batch_key": "k", "rank": 1} | fields))  # type: ignore[arg-type]


def roster_of(*residents: Resident, waited: Sequence[int] = ()) -> Roster:
    """In order of arrival; `waited` says how many turns each has been passed over."""
    roster = Roster()
    order = sorted(range(len(residents)), key=lambda i: -waited[i] if waited else 0)
    most = max(waited, default=0)
    # Those that wait longest come first in time, but arrival must stay the given order.
    for one in residents:
        roster.add(one)
    for turn in range(most + 1):
        chosen = [residents[i] for i in order if waited and most - waited[i] == turn]
        roster.advance(())
        for one in chosen:
            roster._since[one.id] = roster._turn
            roster._since.move_to_end(one.id)
    return roster


def ids(batch: Sequence[Resident]) -> list[str]:
    return [r.id for r in batch]


populations = st.lists(
    st.builds(
        Resident,
        id=st.just(""),
        batch_key=st.sampled_from("ab"),
        rank=st.integers(0, RANKS - 1),
        num_images=st.integers(1, LARGEST),
        exclusive=st.booleans(),
    ),
    max_size=12,
).map(lambda items: [replace(r, id=str(i)) for i, r in enumerate(items)])
rosters = populations.flatmap(
    lambda items: st.lists(
        st.integers(0, PATIENCE + 4), min_size=len(items), max_size=len(items)
    ).map(lambda waited: roster_of(*items, waited=waited))
)
limits = st.builds(FixedLimits, images=st.integers(1, 16), riders=st.integers(1, 16))


def all_of(roster: Roster) -> list[Resident]:
    return list(roster._residents.values())


@given(rosters, limits)
def test_a_batch_is_compatible_within_the_limit_and_has_its_leader_first(
    roster: Roster, limits: FixedLimits
) -> None:
    batch = schedule(roster, limits)
    assert bool(batch) == bool(len(roster))
    if not batch:
        return
    first = leader(roster)
    assert first is not None
    assert batch[0] == first
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(all_of(roster))
    assert {r.batch_key for r in batch} == {first.batch_key}
    if any(r.exclusive for r in batch):
        assert len(batch) == 1
    images = sum(r.num_images for r in batch)
    assert images <= max(limits.images, first.num_images)


@given(rosters, limits)
def test_nobody_stands_outside_a_batch_that_still_had_a_seat_for_it(
    roster: Roster, limits: FixedLimits
) -> None:
    batch = schedule(roster, limits)
    if not batch or batch[0].exclusive:
        return
    images = sum(r.num_images for r in batch)
    for left in set(all_of(roster)) - set(batch):
        entitled = left.rank <= batch[0].rank or roster.waited(left) >= PATIENCE
        if left.exclusive or left.batch_key != batch[0].batch_key or not entitled:
            continue
        # Seats are given in order of urgency: a later, smaller member may have taken the rest.
        order = list(roster.company(batch[0]))
        ahead = sum(
            r.num_images for r in batch if r == batch[0] or order.index(r) < order.index(left)
        )
        assert ahead + left.num_images > limits.images or images > limits.images


@given(rosters, limits)
def test_asking_changes_nothing(roster: Roster, limits: FixedLimits) -> None:
    assert schedule(roster, limits) == schedule(roster, limits)
    assert leader(roster) == leader(roster)


def test_an_interactive_newcomer_leads_the_next_step() -> None:
    video = resident("0", rank=2, batch_key="video")
    image = resident("1", rank=0, batch_key="image")
    assert ids(schedule(roster_of(video, image), FixedLimits(4))) == ["1"]


def test_a_newcomer_leads_even_before_those_that_are_overdue_when_they_have_just_had_a_step() -> (
    None
):
    videos = [resident(str(i), rank=2, batch_key=i) for i in range(4)]
    roster = roster_of(*videos, waited=[0, *[PATIENCE] * 3])
    roster.advance((videos[0],))
    image = resident("9", rank=0)
    roster.add(image)
    led = []
    for _ in range(6):
        batch = schedule(roster, FixedLimits(1))
        roster.advance(batch)
        led.append(batch[0].id)
    assert led == ["9", "1", "9", "2", "9", "3"]


def test_a_less_urgent_member_rides_only_where_it_is_free() -> None:
    roster = roster_of(resident("0", rank=0), resident("1", rank=2))
    assert ids(schedule(roster, FixedLimits(4, riders=2))) == ["0", "1"]
    assert ids(schedule(roster, FixedLimits(4, riders=1))) == ["0"]


def test_a_rider_that_is_overdue_needs_no_free_seat() -> None:
    overdue, urgent = resident("0", rank=2), resident("1", rank=0)
    roster = roster_of(overdue, urgent, waited=[PATIENCE, 0])
    assert set(ids(schedule(roster, FixedLimits(4, riders=1)))) == {"0", "1"}


def test_within_a_class_the_oldest_leads_and_a_smaller_one_fills_the_gap() -> None:
    roster = roster_of(
        resident("0", num_images=2), resident("1", num_images=3), resident("2", num_images=2)
    )
    assert ids(schedule(roster, FixedLimits(4))) == ["0", "2"]


def test_a_leader_larger_than_the_limit_steps_alone() -> None:
    roster = roster_of(resident("0", num_images=8), resident("1"))
    assert ids(schedule(roster, FixedLimits(4))) == ["0"]


def test_a_deterministic_job_shares_with_nobody_wherever_it_stands() -> None:
    alone, other = resident("0", exclusive=True), resident("1")
    assert ids(schedule(roster_of(alone, other), FixedLimits(8))) == ["0"]
    assert ids(schedule(roster_of(other, alone), FixedLimits(8))) == ["1"]


def test_an_id_is_resident_only_once() -> None:
    with pytest.raises(ValueError, match="already"):
        roster_of(resident("0"), resident("0"))


class Turns(RuleBasedStateMachine):
    """Arrivals, steps, departures and changing limits in any order, beside a plain model of who
    waits: the guarantees are checked at every step boundary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.waiting: dict[str, tuple[Resident, int]] = {}
        self.before: tuple[set[str], int] = (set(), 0)
        self.arrivals = 0
        self.most = 0
        self.limits = FixedLimits(4, riders=2)

    @rule(
        key=st.sampled_from("abc"),
        rank=st.integers(0, RANKS - 1),
        num_images=st.integers(1, 6),
        exclusive=st.booleans(),
        copies=st.integers(1, 3),
    )
    def arrive(self, key: str, rank: int, num_images: int, exclusive: bool, copies: int) -> None:
        for _ in range(copies):
            self.arrivals += 1
            new = Resident(str(self.arrivals), key, rank, num_images, exclusive)
            self.roster.add(new)
            self.waiting[new.id] = (new, 0)
        self.most = max(self.most, len(self.waiting))

    @rule(images=st.integers(1, 16), riders=st.integers(1, 16))
    def measure(self, images: int, riders: int) -> None:
        self.limits = FixedLimits(images, riders)

    @rule(turns=st.integers(1, 12))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            batch = schedule(self.roster, self.limits)
            assert bool(batch) == bool(self.waiting), "a boundary passed without a step"
            if not batch:
                return
            self.check_the_order(batch[0])
            self.roster.advance(batch)
            chosen = set(ids(batch))
            self.waiting = {
                name: (r, 0 if name in chosen else waited + 1)
                for name, (r, waited) in self.waiting.items()
            }
            self.check_the_bound()

    def check_the_order(self, first: Resident) -> None:
        there, led_before = self.before
        for name, (r, _) in self.waiting.items():
            inverted = name in there and r.rank < led_before and r.rank < first.rank
            assert not inverted, "less urgent classes led two steps that a resident waited for"
        top = min(r.rank for r, _ in self.waiting.values())
        if first.rank == top:
            peers = [r for r, _ in self.waiting.values() if r.rank == top]
            assert first == peers[0] or self.waiting[first.id][1] >= PATIENCE
        else:
            assert self.waiting[first.id][1] >= PATIENCE
            assert self.waiting[first.id][1] == max(waited for _, waited in self.waiting.values())
        self.before = (set(self.waiting), first.rank)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[name]
        self.roster.discard(name)

    @invariant()
    def check_the_bound(self) -> None:
        for _, waited in self.waiting.values():
            assert waited <= PATIENCE + RANKS * self.most - 1

    @invariant()
    def the_roster_knows_who_is_there(self) -> None:
        assert len(self.roster) == len(self.waiting)
        assert self.roster.num_images == sum(r.num_images for r, _ in self.waiting.values())
        for r, waited in self.waiting.values():
            assert r.id in self.roster
            assert self.roster.waited(r) == waited
            assert r in list(self.roster.company(r))


Turns.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTurns = Turns.TestCase


@given(st.lists(st.integers(0, RANKS - 1), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_nobody_starves_under_an_endless_stream_of_more_urgent_jobs(
    ranks: list[int], data: st.DataObject
) -> None:
    residents = [resident(f"old{i}", rank=rank, batch_key=i) for i, rank in enumerate(ranks)]
    roster = roster_of(*residents)
    bound = PATIENCE + RANKS * (len(ranks) + 1) - 1
    for number in range(4 * bound):
        newcomer = resident(f"new{number}", rank=data.draw(st.integers(0, 1)), batch_key="new")
        roster.add(newcomer)
        batch = schedule(roster, FixedLimits(1))
        roster.advance(batch)
        roster.discard(newcomer.id)
        assert max(roster.waited(r) for r in residents) <= bound


def claimable(residents: Sequence[Resident], limits: FixedLimits, capacity: int = 32) -> int:
    return open_ranks(roster_of(*residents), limits, capacity=capacity, num_ranks=RANKS)


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


@given(populations, limits, st.integers(-8, 40))
def test_a_class_more_urgent_than_all_residents_is_claimed_however_full_it_is(
    residents: list[Resident], limits: FixedLimits, capacity: int
) -> None:
    ranks = claimable(residents, limits, capacity)
    top = min((r.rank for r in residents), default=RANKS)
    if capacity <= 0:
        assert ranks == 0, "results that wait to be stored fill the engine"
    elif sum(r.num_images for r in residents) >= capacity:
        assert ranks == top
    else:
        assert ranks in (top, RANKS)


@given(
    st.lists(st.tuples(populations, st.integers(0, 4), st.integers(1, 16)), max_size=8),
    st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_claims_exceed_the_capacity_by_one_job_of_each_class_at_most(
    rounds: list[tuple[list[Resident], int, int]], capacity: int
) -> None:
    """Of what waits anything may be claimed that is open; residents leave in any order."""
    roster = Roster()
    for number, (waiting, leaving, images) in enumerate(rounds):
        limits = FixedLimits(images)
        for new in waiting:
            ranks = open_ranks(roster, limits, capacity=capacity, num_ranks=RANKS)
            if new.rank < ranks:
                roster.add(replace(new, id=f"{number}/{new.id}"))
            assert roster.num_images <= capacity - 1 + RANKS * LARGEST
        roster.advance(schedule(roster, limits))
        for gone in all_of(roster)[leaving::2]:
            roster.discard(gone.id)
