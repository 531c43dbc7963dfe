"""Packing: every conversation once, whole, and with its own positions."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from midwatch.tuning.encoding import Encoded
from midwatch.tuning.packing import UNCOUNTED, PackedRow, filled_share, pack

ROW = 32
PAD = 999


def conversation(number: int, length: int) -> Encoded:
    """One whose tokens are told from all others', the second half counted."""
    ids = tuple(number * 100 + place for place in range(length))
    return Encoded(ids=ids, counted=tuple(place >= length // 2 for place in range(length)))


def documents(row: PackedRow) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids, labels) between the restarts of the positions."""
    starts = [*(row.position_ids == 0).nonzero().flatten().tolist(), len(row.position_ids)]
    return [
        (tuple(row.input_ids[a:b].tolist()), tuple(row.labels[a:b].tolist())) for a, b in itertools.pairwise(starts)
    ]


lengths = st.lists(st.integers(1, ROW), min_size=1, max_size=200)


@given(lengths, st.integers(0, 5))
def test_every_conversation_is_in_one_row_once_and_whole(sizes: list[int], seed: int) -> None:
    made = [conversation(number + 1, length) for number, length in enumerate(sizes)]
    rows = pack(made, row_tokens=ROW, seed=seed, pad_id=PAD)
    found = sorted(ids for row in rows for ids, _ in documents(row) if ids[0] != PAD)
    assert found == sorted(item.ids for item in made)
    assert all(len(row.input_ids) == len(row.labels) == len(row.position_ids) == ROW for row in rows)


@given(lengths)
def test_labels_are_the_counted_tokens_but_never_a_documents_first(sizes: list[int]) -> None:
    made = {(item := conversation(number + 1, length)).ids: item for number, length in enumerate(sizes)}
    for row in pack(list(made.values()), row_tokens=ROW, seed=0, pad_id=PAD):
        for ids, labels in documents(row):
            if ids[0] == PAD:
                assert set(labels) == {UNCOUNTED}
                continue
            counted = made[ids].counted
            wanted = [t if c and place else UNCOUNTED for place, (t, c) in enumerate(zip(ids, counted, strict=True))]
            assert list(labels) == wanted


def test_a_seed_gives_one_order_and_another_seed_another() -> None:
    made = [conversation(number + 1, 5 + number % 20) for number in range(60)]
    first, again, other = (pack(made, row_tokens=ROW, seed=seed, pad_id=PAD) for seed in (1, 1, 2))
    assert [row.input_ids.tolist() for row in first] == [row.input_ids.tolist() for row in again]
    assert [row.input_ids.tolist() for row in first] != [row.input_ids.tolist() for row in other]


def test_rows_are_nearly_full() -> None:
    made = [conversation(number + 1, 3 + number * 7 % 12) for number in range(300)]
    rows = pack(made, row_tokens=ROW, seed=0, pad_id=PAD)
    assert filled_share(made, rows) > 0.95
