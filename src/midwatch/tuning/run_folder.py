"""A run's folder: which run lies there, what it was shown, and whether a resumed run is the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midwatch.engine.tokenizer import open_tokenizer
from midwatch.errors import TuningError
from midwatch.tuning import datasets, identity
from midwatch.tuning.conversations import Conversation, read_jsonl, write_jsonl
from midwatch.tuning.encoding import encode_all
from midwatch.tuning.own_words import AnswerAll
from midwatch.tuning.packing import PackedRow, filled_share, pack
from midwatch.tuning.progress import Watcher
from midwatch.tuning.recipe import Recipe

RUN, DATA = "run.json", "data.jsonl"
Made = Mapping[str, Callable[[int, int], list[Conversation]]]
"""Data sets that a caller makes: name, and how (conversations wanted, seed)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Conversations in rows, and what is to be said of them."""

    rows: list[PackedRow]
    conversations: int
    too_long: int
    longest_tokens: int
    tokens: int
    counted_tokens: int
    filled: float
    sha256: str


def load_data(conversations: Sequence[Conversation], recipe: Recipe, base: Path) -> Data:
    """Conversations, encoded and packed. Raises `TuningError` if none fits in a row."""
    digest = hashlib.sha256(repr([item.as_dicts() for item in conversations]).encode()).hexdigest()
    tokenizer = open_tokenizer(base)
    training = recipe.training
    encoded = encode_all(conversations, tokenizer, most_tokens=training.row_tokens)
    pad_id = min(tokenizer.eos_ids)
    rows = pack(encoded.conversations, row_tokens=training.row_tokens, seed=training.seed, pad_id=pad_id)
    return Data(
        rows=rows,
        conversations=len(encoded.conversations),
        too_long=encoded.too_long,
        longest_tokens=encoded.longest_tokens,
        tokens=encoded.tokens,
        counted_tokens=encoded.counted_tokens,
        filled=filled_share(encoded.conversations, rows),
        sha256=digest,
    )


def _conversations(recipe: Recipe, watcher: Watcher, answer_all: AnswerAll | None, made: Made) -> list[Conversation]:
    wanted, source = recipe.data.conversations, recipe.data.source
    if source in made:
        watcher.stage(f"Making the data set {source}")
        return made[source](wanted, recipe.training.seed)
    if source in datasets.names():
        own_words = recipe.data.answers == "base"
        if own_words and answer_all is None:
            raise TuningError(
                'data.answers is "base", but nobody can ask the base here.', 'Set data.answers = "tables".'
            )
        if own_words:
            watcher.stage("Asking the base what it would answer itself")
        return datasets.make(source, wanted, recipe.training.seed, answer_all=answer_all if own_words else None)
    if not Path(source).is_file():
        raise TuningError(
            f"data.source is {source!r}, which is neither a file nor a data set that Midwatch makes.",
            f"Name a file of JSON lines of chat messages, or one of: {', '.join((*datasets.names(), *made))}.",
        )
    found = read_jsonl(Path(source))
    return found[:wanted] if wanted else found


def open_run(
    out: Path,
    recipe: Recipe,
    base: Path,
    watcher: Watcher,
    *,
    answer_all: AnswerAll | None,
    made: Made,
    resume: bool,
) -> None:
    """Make the run's folder with its data, or check that the one there is of the same run.

    Raises `TuningError` for data that is no good, and for a folder that holds a run already, or another one.
    """
    path = out / RUN
    if path.is_file():
        if not resume:
            raise TuningError(f"{out} holds a run already.", "Go on with it by --resume, or name another --out.")
        _check_same_run(path, recipe.model_dump(mode="json"))
        identity.check(out, base)
        return
    conversations = _conversations(recipe, watcher, answer_all, made)
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(conversations, out / DATA)
    identity.write(out, base)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"recipe": recipe.model_dump(mode="json")}, indent=1) + "\n", encoding="utf-8")
    temporary.rename(path)  # last: a folder without it holds no run


def _check_same_run(path: Path, recipe: dict[str, Any]) -> None:
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["recipe"]
    except (ValueError, KeyError):
        raise TuningError(f"{path} cannot be read.", "Begin again in another --out.") from None
    if before == recipe:
        return
    names = [name for name in ("name", "base", "four_bit") if before.get(name) != recipe[name]]
    for section in ("data", "lora", "training"):
        theirs = before.get(section, {})
        names += [f"{section}.{field}" for field, value in recipe[section].items() if theirs.get(field) != value]
    raise TuningError(
        f"{path.parent} holds a run of another recipe: {', '.join(names) or 'fields that are no longer known'} differ.",
        "Resume with the same recipe, or name another --out.",
    )


def describe(data: Data) -> str:
    """One line about the data."""
    text = (
        f"{data.conversations:,} conversations, {data.tokens:,} tokens ({data.counted_tokens:,} counted) in "
        f"{len(data.rows):,} rows, {data.filled:.0%} full"
    )
    if data.too_long:
        text += f"; {data.too_long:,} longer than a row left out (longest {data.longest_tokens:,} tokens)"
    return text
