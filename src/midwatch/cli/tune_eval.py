"""`midwatch tune eval`: what a training changed, measured with the engine that serves it, or with peft as it was.

The engine and `tuning` meet here, since `tuning` never imports the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.errors import TuningError

if TYPE_CHECKING:
    from midwatch.engine.engine import Engine
    from midwatch.engine.request import SamplingParams
    from midwatch.settings import EngineSettings, Settings
    from midwatch.tuning.answers import Answerer, Conversation, Likelihood
    from midwatch.tuning.evaluation import Evaluation

ADAPTERS = typer.Argument(metavar="ADAPTER...", help="Adapter folders, or run folders; one per training seed.")
BASE = typer.Option(help="The base: a name, a folder or a GGUF file; what the adapter names if absent.")
WITH = typer.Option("--with", help="engine: as it is served. peft: as it was trained, in NF4.")
PROMPTS = typer.Option(help="Prompts per measure.", min=10)
OUT = typer.Option(help="Folder for page, picture, rows and answers; `evaluation` beside the adapter if absent.")
THREADS = typer.Option(help="CPU threads; 0 takes every core this process may use.", min=0)
MAX_TOKENS = typer.Option(help="Longest answer, tokens.", min=1)


class With(StrEnum):
    """Who answers."""

    engine = "engine"
    peft = "peft"


def evaluate(
    adapter: Annotated[list[Path], ADAPTERS],
    *,
    base: Annotated[str | None, BASE] = None,
    with_: Annotated[With, WITH] = With.engine,
    prompts: Annotated[int, PROMPTS] = 200,
    out: Annotated[Path | None, OUT] = None,
    threads: Annotated[int, THREADS] = 0,
    max_tokens: Annotated[int, MAX_TOKENS] = 96,
) -> None:
    """Compare base, prompted base and tuned: style, content and leakage, with intervals; write a page and a plot."""
    from rich.console import Console

    from midwatch import settings as settings_module
    from midwatch.tuning import evaluation, report, suite

    settings = settings_module.load()
    folders = name_adapters([adapter_folder(path) for path in adapter])
    chosen = base or base_of(next(iter(folders.values())))
    asked = suite.pirate(prompts)
    console = Console(stderr=True, highlight=False)
    with console.status(f"loading {chosen}") as status:
        tell = status.update if console.is_terminal else console.print
        answerer = open_answerer(with_, chosen, folders, settings, threads)
        judge = suite.PirateJudge()
        found = evaluation.evaluate(answerer, asked, judge, list(folders), max_tokens=max_tokens, tell=tell)
    first = next(iter(folders.values()))
    subject = report.Subject(name=report.name_of(first), facts={"base": chosen, **report.facts_of(first)})
    paths = report.write(found, subject, out or first.parent / "evaluation", spans=judge.spans)
    _show(found)
    for path in paths:
        typer.echo(str(path))


class EngineAnswerer:
    """The embedded engine: many requests at once, the adapter per request, greedy."""

    def __init__(self, engine: Engine, description: str) -> None:
        self._engine = engine
        self._description = description

    @property
    def description(self) -> str:
        """What answers."""
        return self._description

    def answer(self, conversations: Sequence[Conversation], *, variant: str | None, max_tokens: int) -> list[str]:
        """Queue everything, then step until all is said."""
        from midwatch.engine.request import SamplingParams

        prompts = [self._engine.chat_prompt(list(conversation)) for conversation in conversations]
        texts = dict.fromkeys(self._queue(prompts, SamplingParams(max_tokens=max_tokens), variant), "")
        while self._engine.has_work:
            for output in self._engine.step():
                texts[output.request_id] += output.text_delta
        return list(texts.values())

    def likelihoods(
        self, conversations: Sequence[Conversation], answers: Sequence[str], *, variant: str | None
    ) -> list[Likelihood]:
        """Each conversation with its answer as one prompt, whose own tokens the engine scores."""
        from midwatch.engine.request import SamplingParams
        from midwatch.tuning.answers import Likelihood

        targets = [self._engine.tokenizer.spell(answer) for answer in answers]
        prompts = [
            self._engine.chat_prompt(list(conversation)) + target
            for conversation, target in zip(conversations, targets, strict=True)
        ]
        requests = self._queue(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), variant)
        lengths = dict(zip(requests, map(len, targets), strict=True))
        found: dict[int, Likelihood] = {}
        while self._engine.has_work:
            for output in self._engine.step():
                if output.prompt_logprobs is None:
                    continue
                count = lengths[output.request_id]
                scored = output.prompt_logprobs[len(output.prompt_logprobs) - count :]
                nll = -sum(item.logprob for item in scored if item is not None)
                found[output.request_id] = Likelihood(nll=nll, tokens=count)
        return [found[request] for request in requests]

    def close(self) -> None:
        """Let go of the engine's threads and memory."""
        self._engine.close()

    def _queue(self, prompts: Sequence[list[int]], params: SamplingParams, variant: str | None) -> list[int]:
        return [self._engine.add_request(ids, params, adapter=variant) for ids in prompts]


def open_answerer(with_: With, base: str, adapters: Mapping[str, Path], settings: Settings, threads: int) -> Answerer:
    """Load the base with its adapters, once they are known to be its own.

    Raises `TuningError` for an adapter of another base, `ModelError` for a base that is missing or damaged.
    """
    from midwatch.engine import hub
    from midwatch.tuning import identity
    from midwatch.tuning.base import find_base

    folder = find_base(base, settings.cache_dir)
    for path in adapters.values():
        identity.check(path, folder)
    if with_ is With.peft:
        import torch

        from midwatch.tuning.answers import PeftAnswerer

        if threads:
            torch.set_num_threads(threads)
        return PeftAnswerer(folder, adapters)
    return open_engine(
        hub.resolve(base, settings.cache_dir), adapters, settings.engine, threads, kernel_dir=settings.kernel_dir
    )


def open_engine(
    path: Path,
    adapters: Mapping[str, Path],
    settings: EngineSettings,
    threads: int,
    *,
    kernel_dir: Path | None = None,
) -> EngineAnswerer:
    """The engine over a GGUF file or a folder, with these adapters and with room for every prompt in its queue."""
    from midwatch.engine.cores import spin_briefly

    spin_briefly()
    from midwatch.engine.engine import Engine

    changes = {
        "threads": threads or settings.threads,
        "adapters": dict(adapters),
        "max_adapters": max(len(adapters), settings.max_adapters),
        "max_waiting": 1 << 30,
    }
    engine = Engine.load(path, settings.model_copy(update=changes), kernel_dir=kernel_dir)
    engine.bind_thread()
    return EngineAnswerer(engine, f"Midwatch's engine, {path.name}, {engine.backend.name}")


def ask_base(questions: Sequence[str], base: str, settings: Settings) -> list[str]:
    """What a base answers, greedy, each question asked alone, by the engine; its memory is given back."""
    from midwatch.engine import hub
    from midwatch.tuning.own_words import MAX_TOKENS

    path = hub.resolve(base, settings.cache_dir)
    answerer = open_engine(path, {}, settings.engine, 0, kernel_dir=settings.kernel_dir)
    try:
        asked = [[{"role": "user", "content": question}] for question in questions]
        return answerer.answer(asked, variant=None, max_tokens=MAX_TOKENS)
    finally:
        answerer.close()


def adapter_folder(path: Path) -> Path:
    """The adapter in a folder that is one, or in a run's folder. Raises `TuningError` if there is none."""
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file():
            return folder
    what = "There is no folder" if not path.exists() else "There is no adapter in"
    raise TuningError(
        f"{what} {path}.",
        "Name a folder with adapter_config.json and adapter_model.safetensors; `midwatch tune run` writes one.",
    )


def name_adapters(folders: Sequence[Path]) -> dict[str, Path]:
    """Adapters by the names they answer to. Raises `TuningError` if one is given twice."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise TuningError("The same adapter is given twice.", "Name one folder per training seed.")
    return {f"seed {index}": folder for index, folder in enumerate(folders)}


def base_of(adapter: Path) -> str:
    """The base that an adapter names. Raises `TuningError` if it names none."""
    try:
        named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        base = named["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise TuningError(f"The adapter in {adapter} does not say what its base is.", "Name the base with --base.")
    return base


def _show(found: Evaluation) -> None:
    """The measures as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from midwatch.tuning import report

    table = Table(title=f"answered by {found.answered_by}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("measure")
    for heading in ("base", "prompted", "tuned", "95 % interval", "aim"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in report.lines(found):
        table.add_row(*line)
    Console(highlight=False).print(table)
