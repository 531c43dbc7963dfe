"""Conversations side by side in rows of equal length, so that no computation goes to padding.

Positions restart at 0 with each conversation: that is where attention and the loss know a boundary. What is left of a
row is filled with one more conversation that counts nothing.
Legend: R rows, L tokens of a row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from midwatch.tuning.encoding import Encoded

UNCOUNTED = -100
OPEN_ROWS = 32  # how many unfinished rows a conversation may choose from


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One row. `labels` hold the token itself where it counts, -100 elsewhere; each tensor is [L], int64."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor

    def as_dict(self) -> dict[str, torch.Tensor]:
        """The row's tensors by the names that models use."""
        return {"input_ids": self.input_ids, "labels": self.labels, "position_ids": self.position_ids}


def pack(conversations: Sequence[Encoded], *, row_tokens: int, seed: int, pad_id: int) -> list[PackedRow]:
    """Rows that hold every conversation once, in an order drawn from `seed`: best fit among the open rows."""
    order = list(conversations)
    random.Random(seed).shuffle(order)
    rows: list[list[Encoded]] = []
    room: list[int] = []
    done: list[list[Encoded]] = []
    for item in order:
        assert len(item.ids) <= row_tokens, "longer than a row"
        fits = [index for index, free in enumerate(room) if free >= len(item.ids)]
        if fits:
            best = min(fits, key=room.__getitem__)
        else:
            best = len(rows)
            rows.append([])
            room.append(row_tokens)
        rows[best].append(item)
        room[best] -= len(item.ids)
        if len(rows) > OPEN_ROWS:
            fullest = min(range(len(rows)), key=room.__getitem__)
            done.append(rows.pop(fullest))
            room.pop(fullest)
    return [_lay_out(row, row_tokens, pad_id) for row in (*done, *rows)]


def _lay_out(row: Sequence[Encoded], row_tokens: int, pad_id: int) -> PackedRow:
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for item in row:
        ids += item.ids
        labels += [
            token if counts and position else UNCOUNTED
            for position, (token, counts) in enumerate(zip(item.ids, item.counted, strict=True))
        ]
        positions += range(len(item.ids))
    left = row_tokens - len(ids)
    return PackedRow(
        input_ids=torch.tensor(ids + [pad_id] * left),
        labels=torch.tensor(labels + [UNCOUNTED] * left),
        position_ids=torch.tensor(positions + list(range(left))),
    )


def filled_share(conversations: Sequence[Encoded], rows: Sequence[PackedRow]) -> float:
    """Share of the rows' places that hold a conversation's token."""
    places = sum(len(row.input_ids) for row in rows)
    return sum(len(item.ids) for item in conversations) / places
