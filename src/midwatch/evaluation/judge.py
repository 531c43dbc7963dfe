"""Ask one column about a set of incidents, keep every verdict as it comes, and go on where a long run ended.

A record is a file of JSON lines: first what was asked (`Run`), then one verdict a line with a digest of the case it is
about. A run continues a record only if the question is the same to the letter: the same column, model and settings, and
the same code of the copilot. Anything else begins anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import orjson

import midwatch.copilot
from midwatch.copilot import prompt
from midwatch.copilot.model import Case, Evidence, Finding
from midwatch.copilot.tokens import estimate_tokens
from midwatch.errors import ProviderError
from midwatch.evaluation import verdict as verdicts
from midwatch.evaluation.verdict import Verdict
from midwatch.foundry.incident import Incident

if TYPE_CHECKING:
    from midwatch.copilot.workflow import Diagnoser

ATTEMPTS = 3
"""How often an incident is asked about before a host that fails ends the run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was asked. `facts` are settings that change an answer (model, threshold, tokens), as words."""

    set: str
    column: str
    facts: dict[str, str] = field(default_factory=dict)
    code: str = ""


def fingerprint() -> str:
    """A digest of the copilot's code and tables, as they lie on disk."""
    root = Path(midwatch.copilot.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


async def judge(
    run: Run,
    incidents: Iterable[Incident],
    diagnoser: Diagnoser,
    *,
    record: Path | None = None,
    concurrency: int = 1,
    tell: Callable[[int, Verdict], None] | None = None,
) -> list[Verdict]:
    """The verdicts on a set, in its order.

    `record` keeps them and gives back those that are there already. `concurrency` asks about so many at once (more than
    one lengthens each). `tell` hears of each with the count
    so far. Raises `ProviderError` after `ATTEMPTS` failures of a host on one incident; the record stays.
    """
    kept = Record.open(record, run) if record is not None else None
    known = kept.known if kept is not None else {}
    found: dict[int, Verdict] = {}
    waiting = enumerate(incidents)

    async def work() -> None:
        for index, incident in waiting:
            key = digest(incident)
            verdict = known.get(key)
            if verdict is None:
                finding = await _ask(diagnoser, incident.case)
                sent = sent_tokens(incident.case, finding.evidence)
                verdict = verdicts.of(incident, finding, run.column, sent_tokens=sent)
                if kept is not None:
                    kept.add(key, verdict)
            found[index] = verdict
            if tell is not None:
                tell(len(found), verdict)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, concurrency)):
                group.create_task(work())
    except* ProviderError as failures:
        raise _first(failures) from None
    finally:
        if kept is not None:
            kept.close()
    return [found[index] for index in sorted(found)]


def digest(incident: Incident) -> str:
    """What a verdict belongs to: the case and its truth, not only its name."""
    case, truth = incident.case, incident.truth
    said = repr(
        (incident.id, incident.source, case, sorted(truth.lines), truth.category, truth.accepted, truth.entities)
    )
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def sent_tokens(case: Case, evidence: Evidence) -> int:
    """About how many tokens the question to a bigger host has for this evidence, an upper estimate (`tokens.py`)."""
    request = prompt.ask_full(case, evidence).request
    return sum(estimate_tokens(message.content) for message in request.messages)


class Record:
    """A file of verdicts that grows. A last line that was not written whole is dropped."""

    def __init__(self, stream: IO[bytes], known: dict[str, Verdict]) -> None:
        self._stream = stream
        self.known = known

    @classmethod
    def open(cls, path: Path, run: Run) -> Record:
        """Continue the record of a run, or begin it anew."""
        head = orjson.dumps(asdict(run), option=orjson.OPT_SORT_KEYS)
        known = dict(_read(path, head))
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(path.suffix + ".new")
        with fresh.open("wb") as stream:  # a clean copy, so that a torn line is never appended to
            stream.write(head + b"\n")
            for key, verdict in known.items():
                stream.write(_line(key, verdict))
        fresh.replace(path)
        return cls(path.open("ab"), known)

    def add(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict; it is with the system when this returns."""
        self._stream.write(_line(key, verdict))
        self._stream.flush()

    def close(self) -> None:
        """End the file."""
        self._stream.close()


def _read(path: Path, head: bytes) -> Iterator[tuple[str, Verdict]]:
    if not path.is_file():
        return
    with path.open("rb") as stream:
        if stream.readline().rstrip(b"\n") != head:
            return
        for line in stream:
            with suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                value = orjson.loads(line)
                yield value["key"], verdicts.from_object(value["verdict"])


def _line(key: str, verdict: Verdict) -> bytes:
    return orjson.dumps({"key": key, "verdict": verdicts.as_object(verdict)}) + b"\n"


async def _ask(diagnoser: Diagnoser, case: Case) -> Finding:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await diagnoser.diagnose(case)
        except ProviderError as error:
            if attempt == ATTEMPTS or not error.retryable:
                raise
    raise AssertionError("unreachable")


def _first(failures: BaseExceptionGroup[ProviderError]) -> ProviderError:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ProviderError)
    return error
