"""Fitting what `confidence.py` applies, from labelled incidents; and where a fit is kept.

Both fits are convex and small, so Newton's method with a ridge ends in a few steps: the conditional logit over the
categories of each incident, then the logistic fit of "right" on the winner's signals. The second is cross-fitted: each
incident is scored by a fit that did not see it, and the threshold is chosen on those scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from midwatch.copilot.confidence import CHOICE, SIGNALS, Calibration, sigmoid
from midwatch.copilot.taxonomy import IDS
from midwatch.errors import SettingsError

RIDGE_CHOICE = 1.0
RIDGE_SIGNALS = 1.0
FOLDS = 10
LEAST_EXAMPLES = 50
_STEPS = 50
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A labelled incident as the fits see it: x(c) of every category, and which are right."""

    features: dict[str, tuple[float, ...]]
    right: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An answer as the second fit sees it: its signals, whether it was right, and a group that folds keep together."""

    signals: dict[str, float]
    right: bool
    group: str = ""


def fit_choice(examples: Sequence[Example], ridge: float = RIDGE_CHOICE) -> tuple[float, ...]:
    """Weights of the conditional logit: the greatest Σ log P(a right category) less the ridge, around (1, 0, ...)."""
    usable = [item for item in examples if item.right & set(item.features)]
    x_ECF = np.array([[item.features[name] for name in IDS] for item in usable])
    right_EC = np.array([[name in item.right for name in IDS] for item in usable])
    prior = np.array([1.0] + [0.0] * (len(CHOICE) - 1))
    weights = prior.copy()
    for _ in range(_STEPS):
        scores_EC = x_ECF @ weights
        p_EC = np.exp(scores_EC - scores_EC.max(1, keepdims=True))
        p_EC /= p_EC.sum(1, keepdims=True)
        good_EC = np.where(right_EC, p_EC, 0.0)
        good_EC /= good_EC.sum(1, keepdims=True)
        mean_EF = np.einsum("ec,ecf->ef", p_EC, x_ECF)
        gradient = (np.einsum("ec,ecf->ef", good_EC, x_ECF) - mean_EF).sum(0) - ridge * (weights - prior)
        centred = x_ECF - mean_EF[:, None]
        hessian = np.einsum("ec,ecf,ecg->fg", p_EC, centred, centred) + ridge * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        weights += step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-6:
            break
    return tuple(round(float(value), 5) for value in weights)


def fit_signals(outcomes: Sequence[Outcome], ridge: float = RIDGE_SIGNALS) -> tuple[float, ...]:
    """Weights of P(right) = σ(v · f), the bias free of the ridge. Signals are scaled to unit spread while fitting."""
    f_EF = np.array([[item.signals[name] for name in SIGNALS] for item in outcomes])
    y_E = np.array([float(item.right) for item in outcomes])
    spread_F = f_EF.std(0)
    spread_F[spread_F < 1e-9] = np.inf  # a signal that never varies says nothing
    spread_F[0] = 1.0
    weights = _newton(f_EF / spread_F, y_E, ridge) / spread_F
    return tuple(round(float(value), 5) for value in weights)


def _newton(f_EF: Floats, y_E: Floats, ridge: float) -> Floats:
    penalty = np.full(f_EF.shape[1], ridge)
    penalty[0] = 1e-6
    weights = np.zeros(f_EF.shape[1])
    for _ in range(_STEPS):
        p_E = 1 / (1 + np.exp(-np.clip(f_EF @ weights, -30, 30)))
        gradient = f_EF.T @ (y_E - p_E) - penalty * weights
        hessian = (f_EF * (p_E * (1 - p_E))[:, None]).T @ f_EF + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        weights += step / max(1.0, float(np.abs(step).max()) / 2)
        if float(np.abs(step).max()) < 1e-7:
            break
    return weights


def cross_fit(outcomes: Sequence[Outcome], folds: int = FOLDS) -> list[float]:
    """P(right) of each answer by a fit on the other folds. Groups (a program, a twin) stay together."""
    groups = sorted({item.group or str(index) for index, item in enumerate(outcomes)})
    fold_of = {group: index % folds for index, group in enumerate(groups)}
    folded = [fold_of[item.group or str(index)] for index, item in enumerate(outcomes)]
    scores = [0.0] * len(outcomes)
    for fold in sorted(set(folded)):
        others = [item for item, place in zip(outcomes, folded, strict=True) if place != fold]
        weights = fit_signals(others)
        for index, item in enumerate(outcomes):
            if folded[index] == fold:
                scores[index] = score(item.signals, weights)
    return scores


def score(signals: dict[str, float], weights: Sequence[float]) -> float:
    """P(right) by fitted weights."""
    return sigmoid(sum(w * signals.get(name, 0.0) for w, name in zip(weights, SIGNALS, strict=True)))


def calibrate(
    outcomes: Sequence[Outcome], *, column: str, model: str, choice: Sequence[float], fitted_on: str, date: str,
    words: frozenset[int] = frozenset(),
) -> Calibration:  # fmt: skip
    """A calibration from judged answers. Raises `SettingsError` for too few of them, or if all or none were right."""
    right = sum(item.right for item in outcomes)
    if len(outcomes) < LEAST_EXAMPLES or right in (0, len(outcomes)):
        raise SettingsError(
            f"{len(outcomes)} judged answers ({right} right) are too few to fit a confidence.",
            f"At least {LEAST_EXAMPLES} are needed, some right and some wrong; midwatch feedback records them.",
        )
    pairs = zip(cross_fit(outcomes), outcomes, strict=True)
    return Calibration(
        column=column,
        model=model,
        choice=tuple(choice),
        signals=fit_signals(outcomes),
        scores=tuple(sorted((round(value, 4), int(item.right)) for value, item in pairs)),
        fitted_on=fitted_on,
        date=date,
        words=words,
    )


def save(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON."""
    value = {
        "column": calibration.column,
        "model": calibration.model,
        "fitted_on": calibration.fitted_on,
        "date": calibration.date,
        "choice": dict(zip(CHOICE, calibration.choice, strict=True)),
        "signals": dict(zip(SIGNALS, calibration.signals, strict=True)),
        "scores": [list(pair) for pair in calibration.scores],
        "words": np.array(sorted(calibration.words), np.uint32).tobytes().hex(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2 if not calibration.words else 0) + b"\n")


def load(data: bytes, name: str) -> Calibration:
    """A calibration from JSON. Raises `SettingsError` for a file that is none, or of other signals."""
    try:
        value = orjson.loads(data)
        return Calibration(
            column=value["column"],
            model=value["model"],
            choice=tuple(float(value["choice"][key]) for key in CHOICE),
            signals=tuple(float(value["signals"][key]) for key in SIGNALS),
            scores=tuple((float(score), int(right)) for score, right in value["scores"]),
            fitted_on=value["fitted_on"],
            date=value["date"],
            words=frozenset(np.frombuffer(bytes.fromhex(value["words"]), np.uint32).tolist()),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{name} is no calibration ({error}).", "midwatch calibrate writes one.") from error


def shipped(column: str) -> Calibration | None:
    """The calibration that Midwatch carries for a way of answering; None if there is none."""
    file = resources.files("midwatch.copilot") / "calibrations" / f"{column}.json"
    return load(file.read_bytes(), file.name) if file.is_file() else None
