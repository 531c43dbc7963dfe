"""`midwatch tune`: teach a model by a recipe, plan what that takes, make its data, measure what changed, export it."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from midwatch.cli.tune_eval import adapter_folder, ask_base, base_of, evaluate
from midwatch.errors import TuningError

if TYPE_CHECKING:
    from midwatch.settings import Settings
    from midwatch.tuning.conversations import Conversation
    from midwatch.tuning.progress import Step, Watcher
    from midwatch.tuning.recipe import Recipe

RECIPE = typer.Argument(metavar="RECIPE", help="A shipped recipe (pirate-smollm2, pirate-llama3-8b) or a TOML file.")
LINE_EVERY_S = 5.0
EXTRA = {"transformers", "peft", "bitsandbytes", "accelerate", "psutil"}
"""Packages that only the extra `tuning` brings."""


Kind = Literal["safetensors", "adapter", "BF16", "F16", "Q8_0", "Q4_1"]
How = Literal["qdq", "16bit"]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, help="Teach a model by QLoRA, and measure what changed.")
    group.command("run", help="Train an adapter by a recipe; --resume goes on where a run was cut off.")(
        _with_extra(run)
    )
    group.command("plan", help="Say how much memory a recipe needs, part by part, before it starts.")(_with_extra(plan))
    group.command("data", help="Make a data set as JSON lines of chat messages, or check one.")(_with_extra(data))
    group.command("eval", help="Measure style, content and leakage: base, prompted base and tuned.")(
        _with_extra(evaluate)
    )
    group.command("export", help="Merge an adapter into its base and write safetensors or GGUF.")(_with_extra(export))
    app.add_typer(group, name="tune")


def run(
    recipe: Annotated[str, RECIPE],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; state_dir/tuning/<recipe's name> if absent.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's training.seed.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many optimizer steps.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base than the recipe's: a name or a folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last whole checkpoint.")] = False,
) -> None:
    """Train. Under `torchrun` the same command shards the model over the GPUs by FSDP2."""
    chosen = _recipe(recipe, seed=seed, steps=steps, base=base)
    settings = _settings()
    from midwatch.engine.cores import spin_briefly

    spin_briefly()
    # bitsandbytes warns, when it is imported, of a kernel that only a hub has; it works without.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from midwatch.tuning.training import run as train

    folder = out or settings.state_dir / "tuning" / chosen.name
    try:
        with _watching(chosen.name) as watcher:
            summary = train(
                chosen,
                out=folder,
                cache_dir=settings.cache_dir,
                watcher=watcher,
                resume=resume,
                answer_all=lambda questions: ask_base(questions, chosen.base, settings),
                made={"triage": triage_lessons},
            )
    except KeyboardInterrupt:
        typer.echo(f"Stopped. The last whole checkpoint is kept in {folder}; go on with --resume.", err=True)
        raise typer.Exit(130) from None
    typer.echo(
        f"{summary.steps} steps in {summary.total_s / 60:.1f} min ({summary.tokens_per_s:,.0f} tokens/s): "
        f"loss {summary.first_loss:.3f} to {summary.last_loss:.3f}, peak {summary.peak_bytes / 2**30:.2f} GiB"
    )
    typer.echo(f"{summary.adapter}  {summary.adapter_bytes / 1e6:.1f} MB")


def triage_lessons(wanted: int, seed: int) -> list[Conversation]:
    """So many lessons for the triage adapter, from incidents of programs that are for training."""
    from midwatch.foundry.lessons import make_lessons
    from midwatch.tuning.conversations import Conversation, Message

    return [
        Conversation(
            messages=(
                Message(role="system", content=lesson.system),
                Message(role="user", content=lesson.user),
                Message(role="assistant", content=lesson.assistant),
            ),
            tags=lesson.tags,
        )
        for lesson in make_lessons(seed, wanted)
    ]


def plan(
    recipe: Annotated[str, RECIPE],
    base: Annotated[str | None, typer.Option(help="Another base than the recipe's: a name or a folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value for machines.")] = False,
) -> None:
    """Arithmetic only: nothing is loaded. The base's shape is read from its folder, or is a known one."""
    from midwatch.cli import tune_plan

    tune_plan.show(_recipe(recipe, seed=None, steps=None, base=base), _settings(), as_json=as_json)


def data(
    source: Annotated[str, typer.Argument(metavar="NAME|FILE", help="pirate, or a file of JSON lines to check.")],
    *,
    to: Annotated[Path | None, typer.Option(help="Write the conversations here, as JSON lines.")] = None,
    conversations: Annotated[int, typer.Option(min=0, help="How many; 0 takes the data set's own number.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same conversations.")] = 0,
    split: Annotated[str, typer.Option(help="train, heldout or classifier; they share no fact.")] = "train",
    show: Annotated[int, typer.Option(min=0, help="Print so many of them.")] = 3,
) -> None:
    """Make or check a data set, say what is in it, and show a few conversations."""
    from midwatch.tuning import datasets
    from midwatch.tuning.conversations import read_jsonl, write_jsonl

    if Path(source).is_file():
        found = read_jsonl(Path(source))
    else:
        found = datasets.make(source, conversations, seed=seed, split=split)
    for conversation in found[:show]:
        for message in conversation.messages:
            typer.echo(f"{message.role:>9}  {message.content}")
        typer.echo("")
    for name, value in datasets.describe(found).items():
        typer.echo(f"{name}: {value}")
    if to is not None:
        write_jsonl(found, to)
        typer.echo(f"{to}  {len(found):,} conversations")


def export(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or a run's.")],
    to: Annotated[Path, typer.Option(help="A folder for safetensors; a .gguf file for a GGUF kind.")],
    kind: Annotated[
        Kind, typer.Option(help="Merged, as safetensors or GGUF; adapter: unmerged, as GGUF for llama.cpp's --lora.")
    ] = "safetensors",
    how: Annotated[
        How, typer.Option(help="qdq: into the rounded weights it was trained on. 16bit: into the base.")
    ] = "qdq",
    base: Annotated[str | None, typer.Option(help="The base; what the adapter names if absent.")] = None,
) -> None:
    """Merge an adapter into its base and write the whole as one model; or write the adapter alone."""
    import tempfile

    from midwatch.tuning import export as gguf
    from midwatch.tuning.base import find_base
    from midwatch.tuning.merge import merge

    if kind == "Q4_1":
        typer.echo("Rounding to Q4_1 drops part of what an adapter added; Q8_0 keeps it (docs/tuning.md).", err=True)
    folder = adapter_folder(adapter)
    base_folder = find_base(base or base_of(folder), _settings().cache_dir)
    if kind == "safetensors":
        written = merge(base_folder, folder, to, how=how)
    elif kind == "adapter":
        written = gguf.export_adapter(folder, base_folder, to)
    else:
        with tempfile.TemporaryDirectory(prefix="midwatch-merge-", dir=to.resolve().parent) as temporary:
            written = gguf.export(merge(base_folder, folder, Path(temporary) / "merged", how=how), to, kind=kind)
    typer.echo(str(written))


def _settings() -> Settings:
    from midwatch import settings

    return settings.load()


def _recipe(name: str, *, seed: int | None, steps: int | None, base: str | None) -> Recipe:
    from midwatch.tuning import recipe

    changes: dict[str, Any] = {"training__seed": seed, "training__max_steps": steps, "base": base}
    return recipe.load_recipe(name, **{key: value for key, value in changes.items() if value is not None})


def _with_extra(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, with a sentence instead of a traceback where a package of the extra is missing."""

    @functools.wraps(verb)
    def said(*arguments: Any, **options: Any) -> None:
        try:
            verb(*arguments, **options)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in EXTRA:
                raise
            raise TuningError(
                f"Fine-tuning needs the package {error.name}, which is not installed.",
                "Install what it needs: pip install 'midwatch[tuning]'",
            ) from None

    return said


class _Lines:
    """A line now and then, where no person looks at a terminal."""

    def __init__(self) -> None:
        self._last = 0.0

    def stage(self, text: str) -> None:
        """Print what begins."""
        typer.echo(text, err=True)

    def step(self, step: Step) -> None:
        """Print a step if the last line is a while ago, and always the first and the last."""
        now = time.monotonic()
        if step.step not in (1, step.steps) and now - self._last < LINE_EVERY_S:
            return
        self._last = now
        typer.echo(f"step {step.step}/{step.steps}  {_figures(step)}  eta {step.eta_s:.0f} s", err=True)


class _Bar:
    """A progress bar with the loss beside it."""

    def __init__(self, name: str, bars: Any) -> None:
        self._bars = bars
        self._task = bars.add_task(name, total=None, figures="")

    def stage(self, text: str) -> None:
        """Print what begins, above the bar."""
        self._bars.console.print(text, highlight=False, markup=False)

    def step(self, step: Step) -> None:
        """Move the bar."""
        self._bars.update(self._task, completed=step.step, total=step.steps, figures=_figures(step))


def _figures(step: Step) -> str:
    return f"loss {step.loss:.3f}  {step.tokens_per_s:,.0f} tok/s  {step.memory_bytes / 2**30:.2f} GiB"


@contextmanager
def _watching(name: str) -> Iterator[Watcher]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield _Bar(name, bars)
