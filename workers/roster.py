"""Who is resident, kept in the orders in which the scheduler asks: by class, and by waiting.

The engine adds a job when it can step, removes it when it cannot any more, and says after every
step who took part. Each of these, and every question, costs the same however many are resident. A
roster is plain data: no I/O, no clock but the count of turns, the same calls give the same answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resident:
    """One job in memory, as far as scheduling cares.

    Equal `batch_key`s may share a step, unless `exclusive` asks for a batch of its own. `rank` is
    the class (0 is the most urgent), `num_images` at least 1.
    """

    id: str
    batch_key: Hashable
    rank: int
    num_images: int = 1
    exclusive: bool = False


class _Line:
    """Residents class by class, within a class in the order in which they came."""

    def __init__(self) -> None:
        self._classes: dict[int, OrderedDict[str, Resident]] = {}

    def add(self, resident: Resident) -> None:
        self._classes.setdefault(resident.rank, OrderedDict())[resident.id] = resident

    def remove(self, resident: Resident) -> None:
        of_class = self._classes[resident.rank]
        del of_class[resident.id]
        if not of_class:
            del self._classes[resident.rank]

    @property
    def is_empty(self) -> bool:
        return not self._classes

    def __iter__(self) -> Iterator[Resident]:
        """The most urgent class first, the oldest of it first."""
        for rank in sorted(self._classes):
            yield from self._classes[rank].values()


class Roster:
    """Residents, and since which turn each of them waits.

    `num_images` counts the images of all; `last_rank` is the class that led the last step, 0 before
    the first.
    """

    def __init__(self) -> None:
        self._residents: dict[str, Resident] = {}
        self._everyone = _Line()
        self._companies: dict[Hashable, _Line] = {}
        self._since: OrderedDict[str, int] = OrderedDict()  # who has waited longest comes first
        self._turn = 0
        self.num_images = 0
        self.last_rank = 0

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, resident_id: str) -> bool:
        return resident_id in self._residents

    def add(self, resident: Resident) -> None:
        """Take in a newcomer. Raises ValueError when its id is there already."""
        if resident.id in self._residents:
            raise ValueError(f"{resident.id} is resident already")
        self._residents[resident.id] = resident
        self._everyone.add(resident)
        self._companies.setdefault(_company(resident), _Line()).add(resident)
        self._since[resident.id] = self._turn
        self.num_images += resident.num_images

    def discard(self, resident_id: str) -> None:
        """Forget a resident; nothing happens when it is not there."""
        resident = self._residents.pop(resident_id, None)
        if resident is None:
            return
        self._everyone.remove(resident)
        company = self._companies[_company(resident)]
        company.remove(resident)
        if company.is_empty:
            del self._companies[_company(resident)]
        del self._since[resident_id]
        self.num_images -= resident.num_images

    def advance(self, batch: Sequence[Resident]) -> None:
        """A turn is over in which `batch`, its leader first, took a step; the others waited."""
        self._turn += 1
        for resident in batch:
            self._since[resident.id] = self._turn
            self._since.move_to_end(resident.id)
        if batch:
            self.last_rank = batch[0].rank

    def waited(self, resident: Resident) -> int:
        """Turns since the resident came or last took part."""
        return self._turn - self._since[resident.id]

    def most_urgent(self) -> Resident:
        """The oldest of the most urgent class. Raises StopIteration when nobody is resident."""
        return next(iter(self._everyone))

    def longest_waiting(self) -> Resident:
        """Whoever has waited longest. Raises StopIteration when nobody is resident."""
        return self._residents[next(iter(self._since))]

    def company(self, resident: Resident) -> Iterator[Resident]:
        """Who may share a step with `resident`, itself among them, the most urgent first."""
        return iter(self._companies[_company(resident)])


def _company(resident: Resident) -> Hashable:
    return resident.batch_key, resident.id if resident.exclusive else None
