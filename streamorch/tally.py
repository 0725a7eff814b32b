"""Numbers that every worker counts and any worker can tell, in memory that all of them share.

The master makes the memory before it forks. Each worker counts in a slot of its own, so no two processes ever change
the same number, and counting costs no more than adding in an array. What a worker has counted stays when it dies,
however it dies: the master adds it to what the dead have counted. There are no files, so none is left behind.
"""

import mmap
import threading
import time

# Of one slot: counts, which add up and outlive their worker, and gauges, which are true only while it lives.
COUNTS = 16 * 1024
GAUGES = 64
# Twice the most workers that there may be, and some more: at a reload old and new ones live side by side.
_SLOTS = 64

_SIZE = COUNTS + GAUGES
_TRIES = 200
_PAUSE_SECONDS = 0.001


class Memory:
    """The slots of all workers. Only the process that forks may `take`, `retire` and `retire_all_but`."""

    def __init__(self, slots: int = _SLOTS):
        # One number that says when the slots change hands, then for each slot whether it is taken, then the slots.
        # The first slot is that of the dead. Pages that nobody has written to take no memory.
        self._numbers = memoryview(mmap.mmap(-1, 8 * (1 + (slots + 1) * (1 + _SIZE)))).cast("d")
        self._taken = self._numbers[1 : slots + 2]
        self._slots = [Slot(self, self._numbers[at : at + _SIZE]) for at in range(slots + 2, len(self._numbers), _SIZE)]
        self._taken[0] = 1

    def take(self) -> "Slot":
        """A slot for a worker; when none is left, one of other memory, of which only that worker can tell."""
        for number, slot in enumerate(self._slots):
            if not self._taken[number]:
                self._taken[number] = 1
                return slot
        return Memory(1).take()

    def retire(self, slot: "Slot") -> None:
        """The worker of this slot is dead: keep what it has counted, forget its gauges, let another have the slot."""
        number = next((number for number, own in enumerate(self._slots) if own is slot), 0)
        if number == 0 or not self._taken[number]:
            return
        self._numbers[0] += 1
        dead = self._slots[0].counts
        for place, value in enumerate(slot.counts):
            if value:
                dead[place] += value
                slot.counts[place] = 0
        for place in range(GAUGES):
            slot.gauges[place] = 0
        self._taken[number] = 0
        self._numbers[0] += 1

    def retire_all_but(self, living: list["Slot"]) -> None:
        """Retire every slot that is taken and not one of these."""
        for slot in self._slots[1:]:
            if slot not in living:
                self.retire(slot)

    def told(self, size: int) -> tuple[list[float], list[list[float]]]:
        """The sums of the first counts over all workers, the dead among them; and the gauges of each one that lives."""
        for _ in range(_TRIES):
            change = self._numbers[0]
            taken = [slot for slot, is_taken in zip(self._slots, self._taken, strict=True) if is_taken]
            counts = [sum(values) for values in zip(*(slot.counts[:size] for slot in taken), strict=True)]
            gauges = [list(slot.gauges) for slot in taken[1:]]
            if change % 2 == 0 and change == self._numbers[0]:
                break
            time.sleep(_PAUSE_SECONDS)  # a slot was changing hands
        return counts, gauges


class Slot:
    """Where one worker counts. Its threads hold `lock` while they add: `+=` reads and writes."""

    def __init__(self, memory: Memory, numbers: "memoryview[float]"):
        self.memory = memory
        self.counts = numbers[:COUNTS]
        self.gauges = numbers[COUNTS:]
        self.lock = threading.Lock()


_mine: Slot | None = None


def give(slot: Slot) -> None:
    """This process is the worker of this slot: called after the fork."""
    global _mine
    _mine = slot


def mine() -> Slot:
    """The slot of this process; without a master that has given one, a new one in memory that nobody shares."""
    return _mine or Memory(1).take()
