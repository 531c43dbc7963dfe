"""Does the confidence tell the truth about programs that nothing was taught or fitted on?

    python bench/calibration.py --judged FILE.pkl.gz [--judged ...] [--write]

The judged incidents (`--judge SET` makes such a file with the embedded model) are of families that neither the
adapter nor the rules' authors saw. Both fits of `copilot/calibration.py` are cross-fitted by family: an incident's
confidence comes from fits that saw no incident of its program. `--write` fits on all of them and writes the
calibrations that Midwatch carries.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from midwatch import results, settings
from midwatch.cli import embedded, local_model
from midwatch.copilot import calibration, confidence
from midwatch.copilot.calibration import Outcome
from midwatch.copilot.promise import fit_threshold, lower_bound, upper_bound
from midwatch.copilot.triage import Options, Triage
from midwatch.engine import hub
from midwatch.evaluation import fitting, measures, sets
from midwatch.evaluation.fitting import Judged
from midwatch.results import Row

ROOT = Path(__file__).resolve().parent.parent
FOLDS, SPLITS, ALPHA = 10, 200, 0.1


def judge(name: str, count: int, file: Path) -> None:
    """Diagnose a set with the embedded model, uncalibrated, and keep what was found."""
    chosen = settings.load()
    incidents = [item for item in sets.load(name, count=count) if item.truth.category]

    async def find() -> list[Judged]:
        path = hub.resolve(chosen.engine.model, chosen.cache_dir)
        loading = embedded.load_in_thread(path, local_model.with_adapter(chosen.engine), chosen.kernel_dir)
        provider = await embedded.start(loading, model=local_model.asked_for(chosen), usd_per_hour=0.0)
        try:
            return await fitting.find_all(Triage(provider, None, chosen.copilot, Options()), incidents)
        finally:
            await provider.aclose()

    with gzip.open(file, "wb") as stream:
        pickle.dump(asyncio.run(find()), stream)


def without_model(item: Judged) -> Judged:
    """What the rules alone would have had."""
    diagnosis = replace(item.finding.diagnosis, heard={}, category="")
    return replace(item, finding=replace(item.finding, diagnosis=diagnosis))


def without_rules(item: Judged) -> Judged:
    """What the model alone would have had, of the same lines."""
    return replace(item, finding=replace(item.finding, evidence=replace(item.finding.evidence, ranking=())))


def cross_fitted(judged: list[Judged], words: frozenset[int]) -> list[tuple[float, bool, bool]]:
    """(confidence, right, abstained) of each incident, by fits that saw no incident of its family."""
    families = sorted({item.incident.truth.program for item in judged})
    found: list[tuple[float, bool, bool]] = []
    for fold in range(FOLDS):
        held = {family for index, family in enumerate(families) if index % FOLDS == fold}
        seen = [item for item in judged if item.incident.truth.program not in held]
        fitted = fitting.fit(seen, column="x", model="x", fitted_on="", date="", words=words)
        found += [answer(item, fitted) for item in judged if item.incident.truth.program in held]
    return found


def answer(item: Judged, fitted: confidence.Calibration) -> tuple[float, bool, bool]:
    """What a calibration says of an incident, and whether it is right."""
    example = confidence.choice_features(item.finding.evidence.ranking, item.opinion)
    winner = confidence.choose(example, fitted.choice)[0][0]
    outcome: Outcome | None = fitting.outcome_of(item, fitted.choice, fitted.words)
    right = item.incident.truth.right(winner)
    if outcome is None:
        return 0.0, right, True
    return calibration.score(outcome.signals, fitted.signals), right, False


def rows(name: str, scored: list[tuple[float, bool, bool]]) -> list[Row]:
    """The measures of one column."""
    total = len(scored)
    named = sorted((value, right) for value, right, abstained in scored if not abstained)
    values = np.array([value for value, _ in named])
    right = np.array([float(good) for _, good in named])
    ece, auroc = measures.ece(values, right), measures.auroc(values, right)
    assert ece is not None
    assert auroc is not None
    threshold = max(confidence.LEAST_ACCEPTED, fit_threshold(list(values), [bool(r) for r in right], ALPHA))
    accepted = values >= threshold
    wrong = int((accepted & (right == 0)).sum())
    sure = values >= 0.8
    sure_wrong = int((sure & (right == 0)).sum())
    kept, risks = promise(scored)
    interval = f"95 % bounds {lower_bound(wrong, total):.3f} to {upper_bound(wrong, total):.3f}"
    n: dict[str, float | str] = {"incidents": total, "named": len(named)}
    share_right = sum(good for _, good, _ in scored) / total
    return [
        results.row(f"{name}: category right", [share_right], "share", target=0.8, direction="at_least", extra=n),
        results.row(f"{name}: accepted at α = 0.1", [int(accepted.sum()) / total], "share", extra=n),
        results.row(f"{name}: right, of what is accepted", [float(right[accepted].mean())], "share", extra=n),
        results.row(
            f"{name}: accepted and wrong", [wrong / total], "share", target=ALPHA, direction="at_most", note=interval
        ),
        results.row(
            f"{name}: confidently wrong (≥ 0.8)", [sure_wrong / total], "share", target=0.02, direction="at_most"
        ),
        results.row(f"{name}: right, of those at 0.8 or more", [float(right[sure].mean())], "share"),
        results.row(f"{name}: calibration error (ECE)", [ece], "share", target=0.05, direction="at_most", extra=n),
        results.row(f"{name}: AUROC of the confidence", [auroc], "share", target=0.85, direction="at_least", extra=n),
        results.row(
            f"{name}: accepted and wrong, mean over 200 splits", [risks], "share", target=ALPHA, direction="at_most"
        ),
        results.row(f"{name}: splits whose other half keeps α", [kept], "share"),
    ]


def promise(scored: list[tuple[float, bool, bool]]) -> tuple[float, float]:
    """A threshold fitted on one half, tried on the other, over random halves: share that keeps α, and the mean risk."""
    draw = np.random.default_rng(7)
    risks = []
    for _ in range(SPLITS):
        order = draw.permutation(len(scored))
        half = len(order) // 2
        seen, other = ([scored[i] for i in part] for part in (order[:half], order[half:]))
        limit = fit_threshold([v for v, _, _ in seen], [bool(r or a) for _, r, a in seen], ALPHA)
        risks.append(sum(v >= limit and not r and not a for v, r, a in other) / len(other))
    return float(np.mean([risk <= ALPHA for risk in risks])), float(np.mean(risks))


def main() -> None:
    """Judge, or measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--judge", metavar="SET")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--judged", type=Path, action="append", required=True)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.judge:
        judge(arguments.judge, arguments.count, arguments.judged[0])
    judged: list[Judged] = []
    for file in arguments.judged:
        with gzip.open(file, "rb") as stream:
            judged += pickle.load(stream)
    words = fitting.known_words(settings.load().copilot.evidence_tokens)
    bare = [without_model(item) for item in judged]
    mute = [without_rules(item) for item in judged]
    columns = {"local": (judged, words), "rules": (bare, frozenset[int]()), "local, no rules": (mute, words)}
    found: list[Row] = []
    for name, (data, known) in columns.items():
        found += rows(name, cross_fitted(data, known))
        if arguments.write and name in local_model.COLUMNS:
            made = fitting.fit(
                data,
                column=name,
                model="triage" if name == "local" else "signature rules",
                fitted_on=f"{len(data)} incidents of foundry-programs",
                date=datetime.now(UTC).date().isoformat(),
                words=known,
            )
            calibration.save(made, ROOT / "src" / "midwatch" / "copilot" / "calibrations" / f"{name}.json")
    results.write(ROOT / "results" / "triage" / "calibration.json", found)
    print(results.table(found))


if __name__ == "__main__":
    main()
