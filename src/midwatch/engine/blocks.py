"""Where keys and values live: a pool of equal blocks, shared where beginnings are equal, accounted slot by slot.

What it is: the bookkeeping of paged attention (Kwon et al., arXiv 2309.06180, section 4.2 to 4.4). A sequence has a
table of blocks; a backend has the memory that their numbers point into. What it is not: it holds no tensor, and it
does not decide who runs; `scheduler.py` asks it for room and hears no when there is none.

Full blocks are known by a hash chain: a block's key covers its tokens and, through its parent's key, everything before
them, in the namespace of the adapter that computed it. A hit also compares what was hashed, so a collision shares
nothing. Blocks are known as soon as they are scheduled: keys and values are written before any row of the step reads
them, so two equal prompts that arrive together are computed once.

A block that nobody holds stays known until its room is needed. The free blocks are a doubly linked list through the
blocks themselves, least recently used first: taking one, giving one back and rescuing a known one are O(1).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal


class Block:
    """One block: `holders` sequences have it in their tables; `content` is what its `key` was made of, if known."""

    __slots__ = ("after", "before", "content", "holders", "id", "key", "since_step")

    def __init__(self, block_id: int) -> None:
        self.id = block_id
        self.holders = 0
        self.key: bytes | None = None
        self.content = b""
        self.since_step = 0
        self.before: Block | None = None
        self.after: Block | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotCounts:
    """Every slot of the pool in one of four states, and what sharing saved.

    `allocated` = `used` + `empty` lie in blocks that sequences hold; `empty` is internal fragmentation. `cached` hold a
    known prefix that nobody holds; `free` hold nothing. `shared` counts what sequences hold together beyond `used`.
    """

    allocated: int
    used: int
    empty: int
    shared: int
    cached: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockState:
    """One block for the block map: who holds it, how many of its slots hold a token, and since which step."""

    state: Literal["free", "cached", "used"]
    owners: tuple[int, ...]
    filled: int
    age_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMap:
    """The whole pool at one moment."""

    block_size: int
    num_blocks: int
    step: int
    blocks: tuple[BlockState, ...]


class BlockPool:
    """Tables of blocks by sequence id. Not safe for several threads, but for `slots` and `block_map`."""

    def __init__(self, num_blocks: int, block_size: int, *, caching: bool = True) -> None:
        assert num_blocks > 0, "a pool needs a block"
        assert block_size > 0, "a block needs a slot"
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.caching = caching
        self.num_free = num_blocks
        self.step = 0
        self.copies: list[tuple[int, int]] = []
        """(source, destination) blocks whose contents must be copied before the next step runs."""
        self._tables: dict[int, list[Block]] = {}
        self._num_tokens: dict[int, int] = {}
        self._num_known: dict[int, int] = {}
        self._keys: dict[int, list[bytes]] = {}
        self._known: dict[bytes, Block] = {}
        self._blocks = [Block(index) for index in range(num_blocks)]
        self._ends = Block(-1)  # before the first free block and after the last
        self._ends.before = self._ends.after = self._ends
        for block in self._blocks:
            self._link(block, before=self._ends)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def table(self, sequence_id: int) -> list[int]:
        """The ids of a sequence's blocks, in order."""
        return [block.id for block in self._tables[sequence_id]]

    def holds(self, sequence_id: int) -> bool:
        """True if the sequence has a table."""
        return sequence_id in self._tables

    def matching(self, sequence_id: int, token_ids: Ids[int], namespace: bytes = b"") -> list[Block]:
        """The known blocks of the longest known beginning. One token at least is left to compute."""
        found: list[Block] = []
        if self.caching:
            for index in range((len(token_ids) - 1) // self.block_size):
                key, content = self._key(sequence_id, token_ids, index, namespace)
                block = self._known.get(key)
                if block is None or block.content != content:
                    break
                found.append(block)
        return found

    def admit(self, sequence_id: int, shared: Ids[Block]) -> int:
        """Give a new sequence a table that begins with `shared` blocks; returns the tokens that they hold."""
        assert sequence_id not in self._tables, "admitted twice"
        for block in shared:
            self._hold(block)
        self._tables[sequence_id] = list(shared)
        self._num_tokens[sequence_id] = len(shared) * self.block_size
        self._num_known[sequence_id] = len(shared)
        return len(shared) * self.block_size

    def num_needed(self, sequence_id: int, num_tokens: int) -> int:
        """Free blocks that `grow` would take."""
        table = self._tables[sequence_id]
        return max(0, self.blocks_for(num_tokens) - len(table)) + self._must_copy(sequence_id, num_tokens)

    def grow(self, sequence_id: int, num_tokens: int) -> bool:
        """Make room for `num_tokens` in all; False, and nothing changed, if too few blocks are free.

        A block that is about to be written and that others hold too is replaced by a copy of its own.
        """
        if self.num_needed(sequence_id, num_tokens) > self.num_free:
            return False
        table = self._tables[sequence_id]
        if self._must_copy(sequence_id, num_tokens):
            index = self._num_tokens[sequence_id] // self.block_size
            own = self._take()
            self.copies.append((table[index].id, own.id))
            table[index].holders -= 1
            table[index] = own
        while len(table) < self.blocks_for(num_tokens):
            table.append(self._take())
        self._num_tokens[sequence_id] = num_tokens
        return True

    def settle(self, sequence_id: int, num_tokens: int) -> None:
        """Say how many tokens a sequence really keeps, after drafts were refused; its blocks stay."""
        self._num_tokens[sequence_id] = num_tokens

    def register(self, sequence_id: int, token_ids: Ids[int], num_tokens: int, namespace: bytes = b"") -> None:
        """Make the full blocks of the first `num_tokens` tokens known. Call it once they are scheduled."""
        if not self.caching:
            return
        table = self._tables[sequence_id]
        last = num_tokens // self.block_size
        for index in range(self._num_known[sequence_id], last):
            block = table[index]
            key, content = self._key(sequence_id, token_ids, index, namespace)
            if key not in self._known:
                block.key, block.content = key, content
                self._known[key] = block
        self._num_known[sequence_id] = max(last, self._num_known[sequence_id])

    def fork(self, parent_id: int, child_id: int) -> None:
        """Give a new sequence the same blocks; whoever writes into a shared one first gets a copy."""
        assert child_id not in self._tables, "forked twice"
        table = self._tables[parent_id]
        for block in table:
            self._hold(block)
        self._tables[child_id] = list(table)
        self._num_tokens[child_id] = self._num_tokens[parent_id]
        self._num_known[child_id] = self._num_known[parent_id]
        self._keys[child_id] = list(self._keys.get(parent_id, ()))

    def free(self, sequence_id: int) -> None:
        """Give back all blocks of a sequence, the last first, so that the ends of chains are reused before their heads.

        A sequence that has none is fine.
        """
        for block in reversed(self._tables.pop(sequence_id, [])):
            block.holders -= 1
            if block.holders == 0:
                self.num_free += 1
                block.since_step = self.step
                # What nobody can hit again is taken first; what is known waits its turn.
                self._link(block, before=self._ends if block.key is not None else _after(self._ends))
        self._num_tokens.pop(sequence_id, None)
        self._num_known.pop(sequence_id, None)
        self._keys.pop(sequence_id, None)

    def slots(self) -> SlotCounts:
        """Every slot accounted for. Safe to call from another thread; it walks the tables."""
        filled = self._filled()
        logical = sum(list(self._num_tokens.values()))
        used, allocated = sum(filled.values()), len(filled) * self.block_size
        cached = sum(block.holders == 0 for block in list(self._known.values())) * self.block_size
        total = self.num_blocks * self.block_size
        return SlotCounts(
            allocated=allocated,
            used=used,
            empty=allocated - used,
            shared=max(0, logical - used),
            cached=cached,
            free=max(0, total - allocated - cached),
        )

    def block_map(self, owners: dict[int, int] | None = None) -> BlockMap:
        """The state of every block; `owners` names sequences (such as by their request). Safe from another thread."""
        filled = self._filled()
        holders: dict[int, list[int]] = {}
        for sequence_id, table in list(self._tables.items()):
            for block in list(table):
                holders.setdefault(block.id, []).append((owners or {}).get(sequence_id, sequence_id))
        states = []
        for block in self._blocks:
            known = block.key is not None
            state: Literal["free", "cached", "used"] = "used" if block.id in holders else "cached" if known else "free"
            states.append(
                BlockState(
                    state=state,
                    owners=tuple(holders.get(block.id, ())),
                    filled=filled.get(block.id, self.block_size if state == "cached" else 0),
                    age_steps=self.step - block.since_step,
                )
            )
        return BlockMap(block_size=self.block_size, num_blocks=self.num_blocks, step=self.step, blocks=tuple(states))

    def check_integrity(self) -> None:
        """Assert that every block is free or held as often as tables say, and that lists and counts agree."""
        held: dict[int, int] = {}
        for sequence_id, table in self._tables.items():
            assert self.blocks_for(self._num_tokens[sequence_id]) <= len(table), "a table is too short for its tokens"
            assert len({block.id for block in table}) == len(table), "a table names a block twice"
            for block in table:
                held[block.id] = held.get(block.id, 0) + 1
        free, block = [], _after(self._ends)
        while block is not self._ends:
            assert _after(block).before is block, "the free list is broken"
            free.append(block.id)
            block = _after(block)
        assert len(free) == len(set(free)) == self.num_free, "the free list and its count disagree"
        for item in self._blocks:
            assert item.holders == held.get(item.id, 0), f"block {item.id} counts its holders wrongly"
            assert (item.holders == 0) == (item.id in set(free)), f"block {item.id} is neither free nor held, or both"
            assert item.key is None or self._known.get(item.key) is item, f"block {item.id} is known under no key"
        assert all(block.key == key for key, block in self._known.items()), "a key leads to a block of another"
        counts = self.slots()
        assert counts.used + counts.empty + counts.cached + counts.free == self.num_blocks * self.block_size

    def _filled(self) -> dict[int, int]:
        """Slots that hold a token, by block in use."""
        filled: dict[int, int] = {}
        for sequence_id, table in list(self._tables.items()):
            left = self._num_tokens.get(sequence_id, 0)
            for block in list(table):
                filled[block.id] = max(filled.get(block.id, 0), min(max(left, 0), self.block_size))
                left -= self.block_size
        return filled

    def _must_copy(self, sequence_id: int, num_tokens: int) -> bool:
        """True if the first slot to write lies in a block that others hold too."""
        start = self._num_tokens[sequence_id]
        table = self._tables[sequence_id]
        index = start // self.block_size
        return num_tokens > start and index < len(table) and table[index].holders > 1

    def _key(self, sequence_id: int, token_ids: Ids[int], index: int, namespace: bytes) -> tuple[bytes, bytes]:
        """Key and content of a sequence's full block number `index`; keys before it are remembered."""
        keys = self._keys.setdefault(sequence_id, [])
        size = self.block_size
        while True:
            at = min(len(keys), index)
            parent = keys[at - 1] if at else blake2b(namespace, digest_size=16).digest()
            content = parent + array("i", token_ids[at * size : (at + 1) * size]).tobytes()
            if len(keys) == at:
                keys.append(blake2b(content, digest_size=16).digest())
            if at == index:
                return keys[index], content

    def _take(self) -> Block:
        """The least recently used free block, which nobody will find any more."""
        block = _after(self._ends)
        assert block is not self._ends, "asked for more blocks than are free"
        if block.key is not None:
            del self._known[block.key]
            block.key, block.content = None, b""
        self._hold(block)
        return block

    def _hold(self, block: Block) -> None:
        if block.holders == 0:
            assert block.before is not None
            assert block.after is not None
            block.before.after, block.after.before = block.after, block.before
            block.before = block.after = None
            block.since_step = self.step
            self.num_free -= 1
        block.holders += 1

    @staticmethod
    def _link(block: Block, *, before: Block) -> None:
        """Put a block into the free list before another."""
        assert before.before is not None
        block.before, block.after = before.before, before
        before.before.after = block
        before.before = block


def _after(block: Block) -> Block:
    assert block.after is not None
    return block.after
