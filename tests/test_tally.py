"""Numbers that processes share: none is lost when one of them dies, and none is counted twice."""

import os
import signal
import time

import pytest

from streamorch import tally


def sums(memory, size=8):
    return memory.told(size)[0]


def in_a_child(work) -> int:
    """Do it in a forked process that nothing runs after; returns its status."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("end", [None, signal.SIGKILL])
def test_what_a_process_counted_is_told_by_others_also_when_it_was_killed(end):
    memory = tally.Memory(4)
    ours, its = memory.take(), memory.take()
    ours.counts[3] += 1

    def work():
        its.counts[3] += 41
        its.gauges[0] = 7
        if end:
            os.kill(os.getpid(), end)

    assert os.WIFSIGNALED(in_a_child(work)) == bool(end)
    assert memory.told(8) == ([0, 0, 0, 42, 0, 0, 0, 0], [[0] * tally.GAUGES, [7] + [0] * (tally.GAUGES - 1)])
    memory.retire(its)
    assert memory.told(8) == ([0, 0, 0, 42, 0, 0, 0, 0], [[0] * tally.GAUGES])


def test_a_place_goes_from_hand_to_hand_and_nothing_is_counted_twice():
    memory = tally.Memory(2)
    for _ in range(5):
        slot = memory.take()
        slot.counts[0] += 1
        memory.retire(slot)
        memory.retire(slot)
    assert sums(memory)[0] == 5
    assert memory.told(1)[1] == []


def test_who_is_not_among_the_living_is_retired():
    memory = tally.Memory(3)
    lost, living, also_lost = (memory.take() for _ in range(3))
    for slot in (lost, living, also_lost):
        slot.counts[1] += 1
        slot.gauges[1] = 1
    memory.retire_all_but([living])
    counts, gauges = memory.told(2)
    assert counts == [0, 3]
    assert len(gauges) == 1
    assert {memory.take(), memory.take()} == {lost, also_lost}


def test_one_too_many_counts_for_itself():
    memory = tally.Memory(1)
    first, second = memory.take(), memory.take()
    second.counts[0] += 1
    assert second.memory is not memory
    assert sums(memory)[0] == 0
    assert sums(second.memory)[0] == 1
    memory.retire(second)
    assert memory.told(1)[1] == [list(first.gauges)]


def test_a_reader_waits_while_a_slot_changes_hands(monkeypatch):
    memory = tally.Memory(1)
    slot = memory.take()
    # Half done: the dead have it already, and the slot has it still.
    slot.counts[0] = memory._slots[0].counts[0] = 1
    memory._numbers[0] += 1
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            slot.counts[0] = 0
            memory._numbers[0] += 1

    monkeypatch.setattr(time, "sleep", pause)
    assert sums(memory)[0] == 1
    assert len(pauses) == 3


def test_whoever_has_a_place_next_begins_with_nothing():
    memory = tally.Memory(1)
    slot = memory.take()
    slot.counts[5], slot.gauges[5] = 1, 1
    memory.retire(slot)
    again = memory.take()
    assert (again.counts[5], again.gauges[5]) == (0, 0)
