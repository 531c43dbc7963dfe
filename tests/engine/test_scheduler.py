from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from midwatch.engine.blocks import BlockPool
from midwatch.engine.request import SamplingParams
from midwatch.engine.scheduler import SCORED_CHUNK, Plan, Scheduler
from midwatch.engine.sequence import Sequence


class Letters:
    """What a sequence asks of a tokenizer."""

    control_ids = frozenset()

    @staticmethod
    def token_bytes(token_id: int) -> bytes:
        return b"x"


def sequence(
    id_: int, num_tokens: int, *, priority: int = 0, came_s: float | None = None, deadline_s: float = math.inf, **params
) -> Sequence:
    """A request whose prompt shares nothing with another's. `came_s` is its arrival; a rank of priority adds 10 s."""
    return Sequence(
        id_,
        [1000 * id_ + place for place in range(num_tokens)],
        SamplingParams(**params),
        tokenizer=Letters(),
        max_tokens=1000,
        priority=priority,
        rank_s=(id_ if came_s is None else came_s) + 10.0 * priority,
        deadline_s=deadline_s,
    )


def make(
    num_blocks: int = 1000,
    block_size: int = 4,
    *,
    seqs: int = 4,
    budget: int = 16,
    watermark: float = 0.0,
    explain=None,
) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks, block_size),
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        watermark=watermark,
        explain=explain,
    )


def compute(plan: Plan) -> dict[int, int]:
    """What a step does to the sequences of a plan: all is computed, and whoever is up to date gets a token."""
    for chunk in plan.chunks:
        due = chunk.reaches_end
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        if due:
            chunk.sequence.append(7, None)
    return {chunk.sequence.id: chunk.num_tokens for chunk in plan.chunks}


def run_step(scheduler: Scheduler, now_s: float = 0.0) -> dict[int, int]:
    served = compute(scheduler.schedule(now_s))
    scheduler.pool.check_integrity()
    return served


def test_a_prompt_is_computed_in_chunks_beside_a_decode() -> None:
    scheduler = make()
    scheduler.add(sequence(1, 10))
    assert run_step(scheduler) == {1: 10}
    scheduler.add(sequence(2, 40))
    assert run_step(scheduler) == {1: 1, 2: 15}
    assert run_step(scheduler) == {1: 1, 2: 15}
    assert run_step(scheduler) == {1: 1, 2: 10}
    assert run_step(scheduler) == {1: 1, 2: 1}


def test_a_long_prompt_that_came_first_leaves_the_answers_under_way_their_tokens() -> None:
    scheduler = make(budget=16)
    scheduler.add(sequence(1, 100))
    run_step(scheduler)
    for id_ in (2, 3):
        other = sequence(id_, 3)
        other.num_cached_tokens = 0
        scheduler.pool.admit(id_, ())
        scheduler.add_running(other)
    assert run_step(scheduler) == {1: 10, 2: 3, 3: 3}
    assert run_step(scheduler) == {1: 14, 2: 1, 3: 1}


def test_first_come_is_first_served() -> None:
    scheduler = make(seqs=1)
    second = sequence(2, 4)
    for item in (sequence(1, 4), second, sequence(3, 4)):
        scheduler.add(item)
    assert set(run_step(scheduler)) == {1}
    scheduler.remove(second)
    scheduler.remove(scheduler.running[0])
    assert set(run_step(scheduler)) == {3}


def test_a_lesser_priority_is_an_arrival_so_much_later() -> None:
    scheduler = make(seqs=1)
    scheduler.add(sequence(1, 4, priority=1, came_s=0))
    scheduler.add(sequence(2, 4, priority=0, came_s=9))
    scheduler.add(sequence(3, 4, priority=0, came_s=11))
    order = []
    while scheduler.has_work:
        order += run_step(scheduler)
        scheduler.remove(scheduler.running[0])
    assert order == [2, 1, 3]


def test_an_urgent_request_takes_the_seat_of_the_last_in_rank_but_an_equal_one_waits() -> None:
    scheduler = make(seqs=2)
    for id_ in (1, 2):
        scheduler.add(sequence(id_, 4))
    run_step(scheduler)
    scheduler.add(sequence(3, 4))
    assert set(run_step(scheduler)) == {1, 2}
    scheduler.add(sequence(4, 4, priority=-1))
    plan = scheduler.schedule()
    assert [item.id for item in plan.preempted] == [2]
    assert set(compute(plan)) == {1, 4}
    assert [item.id for item in scheduler.waiting] == [2, 3]


def test_when_memory_is_short_the_last_in_rank_gives_up_its_blocks_and_comes_back() -> None:
    scheduler = make(num_blocks=4, block_size=4)
    scheduler.add(sequence(1, 7))
    scheduler.add(sequence(2, 7))
    assert run_step(scheduler) == {1: 7, 2: 7}
    assert run_step(scheduler) == {1: 1, 2: 1}
    plan = scheduler.schedule()
    assert [item.id for item in plan.preempted] == [2]
    assert compute(plan) == {1: 1}
    assert scheduler.num_preempted == 1
    assert scheduler.waiting[0].num_computed_tokens == 0
    assert scheduler.waiting[0].num_tokens == 9
    scheduler.remove(scheduler.running[0])
    assert run_step(scheduler) == {2: 5}  # its first block was still known
    assert scheduler.num_queried_tokens == 14


def test_a_sequence_that_fits_the_pool_alone_always_goes_on() -> None:
    scheduler = make(num_blocks=5, block_size=4, seqs=3)
    for id_ in (1, 2, 3):
        scheduler.add(sequence(id_, 6))
    for _ in range(300):
        served = run_step(scheduler)
        assert served
        for item in [item for item in scheduler.running if item.num_completion_tokens >= 14]:
            scheduler.remove(item)
        if not scheduler.has_work:
            return
    raise AssertionError("it never ended")


def test_newcomers_leave_the_watermark_free_for_those_who_run() -> None:
    scheduler = make(num_blocks=10, block_size=4, watermark=0.3)
    scheduler.add(sequence(1, 16))
    scheduler.add(sequence(2, 16))
    assert set(run_step(scheduler)) == {1}
    assert run_step(scheduler) == {1: 1}
    scheduler.remove(scheduler.running[0])
    assert set(run_step(scheduler)) == {2}


def test_two_equal_prompts_in_one_step_are_computed_once() -> None:
    scheduler = make(budget=64)
    for id_ in (1, 2):
        item = sequence(id_, 0 + 21)
        item.token_ids[:] = range(21)
        scheduler.add(item)
    assert run_step(scheduler) == {1: 21, 2: 1}
    assert (scheduler.num_queried_tokens, scheduler.num_hit_tokens) == (42, 20)


def test_a_prompt_whose_rows_are_all_wanted_takes_nothing_from_the_cache_and_small_chunks() -> None:
    scheduler = make(budget=1000, block_size=4)
    for id_, params in ((1, {}), (2, {"prompt_logprobs": 0})):
        item = sequence(id_, 300, **params)
        item.token_ids[:] = range(300)
        scheduler.add(item)
    assert run_step(scheduler) == {1: 300, 2: SCORED_CHUNK}
    assert run_step(scheduler) == {1: 1, 2: SCORED_CHUNK}
    assert run_step(scheduler) == {1: 1, 2: 300 - 2 * SCORED_CHUNK}


def test_whose_time_is_up_leaves_whether_it_runs_or_waits() -> None:
    scheduler = make(seqs=1)
    scheduler.add(sequence(1, 4, deadline_s=5.0))
    scheduler.add(sequence(2, 4, deadline_s=3.0))
    assert set(run_step(scheduler, 0.0)) == {1}
    plan = scheduler.schedule(3.0)
    assert [item.id for item in plan.expired] == [2]
    plan = scheduler.schedule(5.0)
    assert [item.id for item in plan.expired] == [1]
    assert not plan.chunks
    assert scheduler.pool.num_free == scheduler.pool.num_blocks


def test_every_decision_is_said_in_words() -> None:
    said: list[str] = []
    scheduler = make(num_blocks=4, block_size=4, explain=said.append)
    scheduler.add(sequence(1, 7))
    scheduler.add(sequence(2, 7))
    for _ in range(3):
        run_step(scheduler)
    assert said[:2] == ["request 1 enters; 0 of its tokens are known", "request 1 computes 7"]
    assert "request 1 needs a block and none is free" in said
    assert "request 2 gives up its blocks and waits" in said


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12), seqs=st.integers(1, 5), budget=st.integers(16, 64))
def test_everyone_is_served_in_bounded_time(sizes: list[int], seqs: int, budget: int) -> None:
    scheduler = make(num_blocks=20, seqs=seqs, budget=budget)
    for id_, size in enumerate(sizes, 1):
        scheduler.add(sequence(id_, size))
    steps = 0
    while scheduler.has_work:
        assert run_step(scheduler)
        steps += 1
        for item in [item for item in scheduler.running if item.num_completion_tokens >= 3]:
            scheduler.remove(item)
        assert steps <= 4 * sum(sizes) + 20
    assert scheduler.pool.num_free == 20


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever comes and goes: a step keeps its budget, serves someone, and leaves the pool whole."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make(num_blocks=12, block_size=4, seqs=3, budget=20, watermark=0.1)
        self.next_id = 1
        self.now_s = 0.0

    @property
    def all(self) -> list[Sequence]:
        return [*self.scheduler.running, *self.scheduler.waiting]

    @rule(size=st.integers(1, 40), priority=st.integers(-1, 1), lasts_s=st.sampled_from([3.0, math.inf]))
    def arrive(self, size: int, priority: int, lasts_s: float) -> None:
        item = sequence(self.next_id, size, priority=priority, came_s=self.now_s, deadline_s=self.now_s + lasts_s)
        item.token_ids[:] = range(size)  # beginnings are equal
        item.max_tokens = 48 - size
        self.scheduler.add(item)
        self.next_id += 1

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.scheduler.remove(data.draw(st.sampled_from(self.all)))

    @rule()
    def step(self) -> None:
        self.now_s += 1.0
        plan = self.scheduler.schedule(self.now_s)
        alive = bool(self.all)
        served = compute(plan)
        assert bool(served) == alive
        assert sum(served.values()) <= 20
        assert all(count > 0 for count in served.values())
        for item in self.all:
            if item.num_completion_tokens >= item.max_tokens:
                self.scheduler.remove(item)

    @invariant()
    def bounds_hold(self) -> None:
        self.scheduler.pool.check_integrity()
        assert len(self.scheduler.running) <= 3
        for queue in (self.scheduler.running, self.scheduler.waiting):
            assert [item.rank for item in queue] == sorted(item.rank for item in queue)
        for item in self.scheduler.running:
            assert len(self.scheduler.pool.table(item.id)) * 4 >= item.num_computed_tokens
        assert not any(self.scheduler.pool.holds(item.id) for item in self.scheduler.waiting)

    def teardown(self) -> None:
        for item in self.all:
            self.scheduler.remove(item)
        assert self.scheduler.pool.num_free == 12


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
