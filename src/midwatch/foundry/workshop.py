"""A small project in a place, whose tools are run as a job of continuous integration would run them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.errors import FoundryError
from midwatch.foundry.place import Place
from midwatch.foundry.services.service import OTHER_WORDS, TRADES, render
from midwatch.foundry.stage import Told

PROJECTS = Path(__file__).parent / "projects"
ROOTS = ("/home/runner/work/{name}/{name}", "/builds/{name}", "/workspace", "/app", "/github/workspace")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that breaks a project: `after` in place of `before` in a file, and what is printed of it (pattern)."""

    file: str
    before: str
    after: str
    error: str


@dataclass(kw_only=True)
class Workshop:
    """A project of a place, its words drawn. `hide` maps texts of this machine to what a runner would print."""

    place: Place
    rng: random.Random
    words: dict[str, str]
    name: str
    hide: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the project lies."""
        return self.place.folder / "project"

    def render(self, text: str) -> str:
        """A text in the words of this project."""
        return render(text, self.words)

    def change(self, change: Change) -> None:
        """Make a change. Raises `FoundryError` if the file has no such text."""
        path = self.folder / self.render(change.file)
        text, before = path.read_text(encoding="utf-8"), self.render(change.before)
        if before not in text:
            raise FoundryError(f"{path.name} has no {before!r} to change.")
        path.write_text(text.replace(before, self.render(change.after)), encoding="utf-8")

    def write(self, name: str, text: str) -> Path:
        """Write a file of the project, in its words."""
        return self.place.write(f"project/{self.render(name)}", self.render(text))

    def run(self, *command: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> int:
        """Run a tool in the project; what it prints is heard. Returns its exit code."""
        surroundings = {"HOME": str(self.place.folder), "CI": "true", **(env or {})}
        return self.place.run("ci", command, cwd=self.folder, env=surroundings, timeout_s=timeout_s)

    def told(
        self,
        cause: str,
        truth: Sequence[str],
        *,
        entity: str = "",
        accepted: tuple[str, ...] = (),
        names: Mapping[str, str] | None = None,
        failed: bool = True,
    ) -> Told:
        """What was done, for the recording."""
        root = self.rng.choice(ROOTS).format(name=self.name)
        job = self.rng.choice(("build", "test", "ci", "checks", "verify"))
        titles = (f"CI failed: {self.name} / {job}", f"workflow {job} failed on main", f"{self.name}: {job} is red")
        return Told(
            cause=cause,
            ended_at=self.place.now,
            entity=entity,
            truth=[self.render(pattern) for pattern in truth],
            broke_at=0.0 if failed else None,
            names=names or {},
            hide={**self.hide, str(self.folder): root, str(self.place.folder): "/home/runner"},
            alert=(self.rng.choice(titles) if failed else "", ""),
            severity="medium" if failed else "info",
            accepted=accepted,
        )


def workshop(place: Place, rng: random.Random, kind: str) -> Workshop:
    """Draw a project of a kind (a folder of `projects`) and write it into the place."""
    trade, noun, upstream = rng.choice(TRADES)
    words = {"order": noun, "payments": upstream, **{word: rng.choice(others) for word, others in OTHER_WORDS.items()}}
    made = Workshop(place=place, rng=rng, words=words, name=f"{trade}-{rng.choice(('api', 'core', 'service', 'lib'))}")
    folder = PROJECTS / kind
    for source in sorted(folder.rglob("*.in")):
        made.write(str(source.relative_to(folder)).removesuffix(".in"), source.read_text(encoding="utf-8"))
    return made
