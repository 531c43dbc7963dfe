"""How much of a pirate is in a text: a fixed lexicon of markers, and a classifier of words and pairs of words.

The classifier is a logistic regression over word 1- and 2-grams, trained on facts and prose that no tuning sees. Each
plain text has a pirate counterpart, so that the subject tells it nothing; a plain text that only begins with a greeting
is on the plain side.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from midwatch.errors import TuningError
from midwatch.tuning import arithmetic
from midwatch.tuning.facts import facts_of, split_of, table
from midwatch.tuning.pirate import speak, to_pirate
from midwatch.tuning.pirate_words import GREETINGS

MARKERS = frozenset(
    (
        "ahoy", "avast", "aye", "nay", "matey", "mateys", "hearty", "hearties", "shipmate", "shipmates", "lubber",
        "landlubber", "landlubbers", "scurvy", "scallywag", "scallywags", "bucko", "blimey", "savvy",
        "thankee", "ye", "yer", "yers", "yerself", "meself", "th'", "o'", "an'", "fer", "wi'", "wi'out", "'tis",
        "'twas", "'twill", "'em", "'til", "'bout", "'round", "'gainst", "'cause", "afore", "betwixt", "ne'er", "e'er",
        "e'en", "o'er", "ol'", "jus'", "mayhap", "cap'n", "ain't", "t'",
    )
)  # fmt: skip
"""Words that neutral English does not use. `be` and `me` are no markers: neutral English uses them too."""

PHRASES = ("yo ho ho", "shiver me timbers", "blow me down", "davy jones", "sea dog", "mark me words")
"""What counts as one marker though it is several words."""

ROUNDS, STEP, DECAY = 120, 4.0, 1e-4
MIN_TEXTS = 3
MIN_CHANGES = 4
_PLAIN_BE = re.compile(
    r"((?:^|[.!?:]\s+|\b(?:to|will|would|can|could|may|might|must|should|shall|not|don't|won't|can't|also|let \w+)\s+))"
    r"be\b",
    re.IGNORECASE,
)
"""A be that neutral English has: an infinitive or an order."""
_MARKERS = MARKERS | {phrase.replace(" ", "-") for phrase in PHRASES}
_PHRASE = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b")
_WORD = re.compile(r"'?[^\W\d_]+(?:['-][^\W\d_]+)*'?")


def words_of(text: str) -> list[str]:
    """Words in lower case with their apostrophes (th', 'tis); code between backticks is left out."""
    prose = (
        re.sub(r"```.*?(?:```|\Z)|`[^`\n]*`", " ", text, flags=re.DOTALL).lower().replace("’", "'").replace("‘", "'")
    )
    found = _WORD.findall(prose)
    return [word.strip("'") if len(word) > 2 and word[0] == word[-1] == "'" else word for word in found]


def is_marker(word: str) -> bool:
    """Whether a word of `words_of` is a pirate's: one of `MARKERS`, arr with any number of r, or a verb in -in'."""
    return word in _MARKERS or bool(re.fullmatch(r"y?a+rr+(?:gh)?|argh|[a-z]{2,}in'", word))


def marker_rate(text: str) -> float:
    """Markers per 100 words; 0 for a text without words. Each of `PHRASES` is one word."""
    joined = _PHRASE.sub(lambda match: match.group().replace(" ", "-"), text.lower())
    words = words_of(joined)
    return 100.0 * sum(map(is_marker, words)) / len(words) if words else 0.0


@dataclass(frozen=True, kw_only=True)
class StyleClassifier:
    """Weights of word 1- and 2-grams. Legend: N texts, F features."""

    columns: dict[str, int]
    weights_F: NDArray[np.float32]
    bias: float

    @classmethod
    def fit(cls, styled: Sequence[str], plain: Sequence[str]) -> StyleClassifier:
        """Train on texts of both sides by gradient descent with momentum; no draw is involved.

        Raises `TuningError` if a side is empty.
        """
        if not styled or not plain:
            raise TuningError("A style's classifier needs texts of both sides.", "Give at least one of each.")
        grams = [_grams(text) for text in (*styled, *plain)]
        seen = Counter(gram for counts in grams for gram in counts)
        known = sorted(gram for gram, texts in seen.items() if texts >= min(MIN_TEXTS, len(grams)))
        columns = {gram: column for column, gram in enumerate(known)}
        features_NF = np.stack([_row(counts, columns) for counts in grams])
        labels_N = np.repeat(np.array([1.0, 0.0], np.float32), (len(styled), len(plain)))
        share_N = np.where(labels_N == 1, 0.5 / len(styled), 0.5 / len(plain)).astype(np.float32)
        weights_F, speed_F = np.zeros(len(known), np.float32), np.zeros(len(known), np.float32)
        bias = bias_speed = 0.0
        for _ in range(ROUNDS):
            error_N = share_N * (_sigmoid(features_NF @ weights_F + bias) - labels_N)
            speed_F = (0.9 * speed_F - STEP * (error_N @ features_NF + DECAY * weights_F)).astype(np.float32)
            bias_speed = 0.9 * bias_speed - STEP * float(error_N.sum())
            weights_F = weights_F + speed_F
            bias += bias_speed
        return cls(columns=columns, weights_F=weights_F, bias=bias)

    def probability(self, text: str) -> float:
        """How likely a text is styled, 0 to 1. A text without a known word is not."""
        row_F = _row(_grams(text), self.columns)
        return float(_sigmoid(row_F @ self.weights_F + self.bias)) if row_F.any() else 0.0

    def is_pirate(self, text: str) -> bool:
        """Whether it is more likely styled than not."""
        return self.probability(text) > 0.5


@cache
def pirate_classifier(seed: int = 0) -> StyleClassifier:
    """The classifier that evaluations use, trained in seconds on texts of the split `classifier`."""
    styled, plain = labelled_texts("fit", seed)
    return StyleClassifier.fit(styled, plain)


def labelled_texts(part: str, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts to train or test the classifier with: (pirate, plain). `part` is `fit` or `test`; they share no text.

    Both take facts of the split `classifier` and free prose. `test` holds a quarter of them.
    Raises `TuningError` for another part.
    """
    if part not in ("fit", "test"):
        raise TuningError(f"There is no part {part!r} of the classifier's texts.", "Ask for fit or test.")
    source = random.Random(f"classifier/{part}/{seed}")
    neutral = [(answer, fact.keep) for fact in facts_of("classifier") for answer in fact.answers]
    neutral += [(text, ()) for text in table("prose")["neutral"]]
    neutral = [item for item in neutral if _part(item[0]) == part]
    for _ in range(120 if part == "fit" else 40):
        problem = arithmetic.make_problem(source, source.choice([arithmetic.STORIES, arithmetic.SUMS]))
        neutral.append((problem.answer, ()))
    free = [text for text in table("prose")["pirate"] if _part(text) == part]
    styled, plain = [*free, *free], []
    for text, keep in neutral:
        styled += [to_pirate(text, seed=source.getrandbits(32), keep=keep) for _ in range(3)]
        plain += [text, text]
        if _changes(text, speak(text, keep)) >= MIN_CHANGES:
            plain.append(f"{source.choice(GREETINGS)} {text}")
    for _ in range(len(neutral)):
        others = source.sample(neutral, 4)
        plain.append(" ".join(text for text, _ in others))
        styled.append(" ".join(to_pirate(text, seed=source.getrandbits(32), keep=keep) for text, keep in others))
        (first, keep), *rest = others
        plain.append(" ".join([speak(first, keep), *(text for text, _ in rest)]))
    return styled, plain


def _part(text: str) -> str:
    return "test" if split_of(text, heldout_percent=25, classifier_percent=0) == "heldout" else "fit"


def _changes(neutral: str, pirate: str) -> int:
    """How many words of a text the rules changed."""
    return sum((Counter(words_of(neutral)) - Counter(words_of(pirate))).values())


def _grams(text: str) -> Counter[str]:
    """Words and pairs of words. Verbs in -ing and -in', every arr, and a be that is plain English count as one each."""
    words = words_of(_PLAIN_BE.sub(r"\1plain-be", text))
    words = [re.sub(r"^[a-z]{2,}in'$", "~in'", re.sub(r"^[a-z]{2,}ing$", "~ing", word)) for word in words]
    words = ["arr" if re.fullmatch(r"y?a+r{2,}(?:gh)?|argh", word) else word for word in words]
    return Counter(words) + Counter(f"{first} {second}" for first, second in pairwise(words))


def _row(counts: Counter[str], columns: dict[str, int]) -> NDArray[np.float32]:
    """A text's known grams as a row of length one, each by the root of its count."""
    row_F = np.zeros(len(columns), np.float32)
    for gram, count in counts.items():
        if gram in columns:
            row_F[columns[gram]] = np.sqrt(count)
    length = float(np.linalg.norm(row_F))
    return row_F / length if length else row_F


def _sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scores)), dtype=np.float32)
