from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from midwatch.engine.scheduler import Scheduler


class Work:
    """What the scheduler sees of a sequence."""

    def __init__(self, id_: int, num_tokens: int) -> None:
        self.id = id_
        self.num_tokens = num_tokens
        self.num_computed_tokens = 0


def run_step(scheduler: Scheduler) -> dict[int, int]:
    chunks = scheduler.schedule()
    for chunk in chunks:
        if chunk.reaches_end:
            chunk.sequence.num_tokens += 1
        chunk.sequence.num_computed_tokens += chunk.num_tokens
    return {chunk.sequence.id: chunk.num_tokens for chunk in chunks}


def test_a_prompt_is_computed_in_chunks_beside_a_decode() -> None:
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=16)
    scheduler.add(Work(1, 10))
    assert run_step(scheduler) == {1: 10}
    scheduler.add(Work(2, 40))
    assert run_step(scheduler) == {1: 1, 2: 15}
    assert run_step(scheduler) == {1: 1, 2: 15}
    assert run_step(scheduler) == {1: 1, 2: 10}
    assert run_step(scheduler) == {1: 1, 2: 1}


def test_first_come_is_first_served() -> None:
    scheduler = Scheduler(max_num_seqs=1, max_num_batched_tokens=16)
    for id_ in (1, 2, 3):
        scheduler.add(Work(id_, 4))
    assert set(run_step(scheduler)) == {1}
    assert scheduler.remove(2).id == 2
    scheduler.remove(1)
    assert set(run_step(scheduler)) == {3}
    assert scheduler.remove(99) is None


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=12), seqs=st.integers(1, 5), budget=st.integers(16, 64))
def test_everyone_is_served_in_bounded_time(sizes: list[int], seqs: int, budget: int) -> None:
    scheduler = Scheduler(seqs, budget)
    for id_, size in enumerate(sizes):
        scheduler.add(Work(id_, size))
    steps = 0
    while scheduler.has_work:
        run_step(scheduler)
        steps += 1
        for sequence in [item for item in scheduler.running if item.num_computed_tokens >= sizes[item.id]]:
            scheduler.remove(sequence.id)
        assert steps <= sum(sizes)


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever comes and goes, a step keeps its budget and never leaves a running sequence behind a newer one."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_num_seqs=3, max_num_batched_tokens=20)
        self.next_id = 0

    @rule(size=st.integers(1, 70))
    def arrive(self, size: int) -> None:
        self.scheduler.add(Work(self.next_id, size))
        self.next_id += 1

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.scheduler.remove(data.draw(st.integers(0, max(0, self.next_id))))

    @rule()
    def step(self) -> None:
        had_work = self.scheduler.has_work
        served = run_step(self.scheduler)
        assert bool(served) == had_work
        assert sum(served.values()) <= 20
        assert all(count > 0 for count in served.values())
        ids = [item.id for item in self.scheduler.running]
        assert list(served) == ids[: len(served)]

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.scheduler.running) <= 3
        assert [item.id for item in self.scheduler.running] == sorted(item.id for item in self.scheduler.running)


TestSchedulerMachine = SchedulerMachine.TestCase
