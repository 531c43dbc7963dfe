from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from midwatch.engine.blocks import BlockPool


def fill(pool: BlockPool, sequence_id: int, tokens: list[int], namespace: bytes = b"") -> int:
    """Admit a sequence, give it room and make its blocks known; returns how many of its tokens were known before."""
    known = pool.admit(sequence_id, pool.matching(sequence_id, tokens, namespace))
    assert pool.grow(sequence_id, len(tokens))
    pool.register(sequence_id, tokens, len(tokens), namespace)
    pool.check_integrity()
    return known


def test_an_equal_beginning_is_shared_and_the_last_token_is_always_left_to_compute() -> None:
    pool = BlockPool(16, 4)
    assert fill(pool, 1, [*range(12)]) == 0
    assert fill(pool, 2, [*range(12)]) == 8
    assert pool.table(1)[:2] == pool.table(2)[:2]
    assert pool.table(1)[2] != pool.table(2)[2]
    assert fill(pool, 3, [*range(12), 99]) == 12
    assert fill(pool, 4, [7, *range(12)]) == 0


def test_a_freed_prefix_is_found_until_its_room_is_needed() -> None:
    pool = BlockPool(4, 4)
    fill(pool, 1, [*range(8)])
    pool.free(1)
    assert (pool.num_free, pool.slots().cached) == (4, 8)
    assert fill(pool, 2, [*range(8), 50]) == 8
    pool.free(2)
    fill(pool, 3, [*range(100, 116)])
    pool.free(3)
    assert fill(pool, 4, [*range(8), 50]) == 0


def test_the_end_of_a_chain_goes_before_its_head() -> None:
    pool = BlockPool(3, 4)
    fill(pool, 1, [*range(12)])
    pool.free(1)
    fill(pool, 2, [90])
    pool.free(2)
    assert fill(pool, 3, [*range(12)]) == 8


def test_room_that_nobody_can_hit_again_goes_before_a_known_prefix() -> None:
    pool = BlockPool(3, 4)
    fill(pool, 1, [*range(5)])  # one known block and one that is not full
    pool.free(1)
    fill(pool, 2, [90, 91])
    fill(pool, 3, [92, 93])
    pool.free(2)
    pool.free(3)
    assert fill(pool, 4, [*range(5)]) == 4


def test_adapters_share_nothing() -> None:
    pool = BlockPool(16, 4)
    fill(pool, 1, [*range(9)], b"one")
    assert fill(pool, 2, [*range(9)], b"two") == 0
    assert fill(pool, 3, [*range(9)], b"one") == 8


def test_a_collision_of_keys_shares_nothing() -> None:
    pool = BlockPool(16, 4)
    fill(pool, 1, [*range(9)])
    block = pool._known[pool._keys[1][0]]
    block.content = b"something else under the same key"
    assert pool.matching(2, [*range(9)]) == []


def test_a_fork_shares_all_and_copies_only_what_it_writes() -> None:
    pool = BlockPool(16, 4)
    fill(pool, 1, [*range(6)])
    pool.fork(1, 2)
    pool.fork(1, 3)
    assert pool.table(1) == pool.table(2) == pool.table(3)
    assert pool.slots().shared == 12
    assert pool.grow(2, 7)
    assert pool.grow(1, 7)
    assert pool.grow(3, 7)  # the last holder writes in place
    assert [source for source, _ in pool.copies] == [pool.table(3)[1]] * 2
    assert [to for _, to in pool.copies] == [pool.table(2)[1], pool.table(1)[1]]
    assert len({pool.table(id_)[1] for id_ in (1, 2, 3)}) == 3
    assert len({pool.table(id_)[0] for id_ in (1, 2, 3)}) == 1
    pool.check_integrity()


def test_a_refused_request_for_room_changes_nothing() -> None:
    pool = BlockPool(3, 4)
    fill(pool, 1, [*range(8)])
    pool.admit(2, ())
    before = (pool.table(1), pool.table(2), pool.num_free)
    assert not pool.grow(2, 9)
    assert (pool.table(1), pool.table(2), pool.num_free) == before
    pool.check_integrity()


@pytest.mark.parametrize("size", [1, 3, 16])
def test_every_slot_is_in_one_state(size: int) -> None:
    pool = BlockPool(40, size)
    fill(pool, 1, [*range(20)])
    fill(pool, 2, [*range(17)])
    slots = pool.slots()
    shared = 16 // size * size  # the longest known beginning that leaves a token of 17 to compute
    assert slots.used == 20 + 17 - shared
    assert slots.shared == shared
    assert slots.allocated == slots.used + slots.empty
    assert slots.allocated + slots.cached + slots.free == 40 * size
    pool.free(1)
    pool.free(2)
    assert pool.slots().allocated == 0


def test_the_block_map_says_who_holds_what() -> None:
    pool = BlockPool(6, 4)
    fill(pool, 1, [*range(6)])
    fill(pool, 2, [*range(5)])
    fill(pool, 3, [50, 51, 52, 53])
    pool.free(3)
    found = pool.block_map({1: 101, 2: 102})
    states = [block.state for block in found.blocks]
    assert (states.count("used"), states.count("cached"), states.count("free")) == (3, 1, 2)
    shared = found.blocks[pool.table(1)[0]]
    assert (sorted(shared.owners), shared.filled) == ([101, 102], 4)
    assert sorted(block.filled for block in found.blocks if block.state == "used") == [1, 2, 4]


class PoolMachine(RuleBasedStateMachine):
    """Whatever is admitted, grown, forked and freed: nothing leaks, and what is shared holds the same tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, 3)
        self.texts: dict[int, list[int]] = {}
        self.next_id = 0

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def arrive(self, tokens: list[int]) -> None:
        known = self.pool.matching(self.next_id, tokens)
        revived = sum(block.holders == 0 for block in known)
        if self.pool.blocks_for(len(tokens)) - len(known) + revived <= self.pool.num_free:
            self.pool.admit(self.next_id, known)
            assert self.pool.grow(self.next_id, len(tokens))
            self.pool.register(self.next_id, tokens, len(tokens))
            self.texts[self.next_id] = list(tokens)
        else:
            self.pool.free(self.next_id)
        self.next_id += 1

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), token=st.integers(0, 1))
    def write_on(self, data: st.DataObject, token: int) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.texts)))
        if self.pool.grow(id_, len(self.texts[id_]) + 1):
            self.texts[id_].append(token)
            self.pool.register(id_, self.texts[id_], len(self.texts[id_]))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(sorted(self.texts)))
        self.pool.fork(parent, self.next_id)
        self.texts[self.next_id] = list(self.texts[parent])
        self.next_id += 1

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.texts)))
        self.pool.free(id_)
        del self.texts[id_]

    @invariant()
    def nothing_leaks_and_slots_hold_one_token(self) -> None:
        self.pool.check_integrity()
        content: dict[tuple[int, int], tuple[int, ...]] = {}
        for id_, text in self.texts.items():
            for place, block in enumerate(self.pool.table(id_)):
                for offset in range(min(3, len(text) - place * 3)):
                    before = tuple(text[: place * 3 + offset + 1])
                    assert content.setdefault((block, offset), before) == before

    def teardown(self) -> None:
        for id_ in self.texts:
            self.pool.free(id_)
        self.pool.check_integrity()
        assert self.pool.num_free == 12
        assert self.pool.slots().allocated == 0


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
