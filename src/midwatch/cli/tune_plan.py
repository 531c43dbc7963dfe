"""`midwatch tune plan`: the memory of a run, part by part, beside what plain peft would take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from midwatch.settings import Settings
    from midwatch.tuning.recipe import Recipe

GIB = 2**30


def show(recipe: Recipe, settings: Settings, *, as_json: bool) -> None:
    """Print the plan for a GPU and for a CPU. Raises `TuningError` for a base whose shape is not known."""
    from midwatch.tuning import plan
    from midwatch.tuning.shapes import shape_of

    shape = shape_of(recipe.base, settings.cache_dir)
    devices: tuple[Literal["cuda", "cpu"], ...] = ("cuda", "cpu")
    plans = {device: plan.plan(shape, recipe, device) for device in devices}
    plain = plan.plain_plan(shape, recipe, "cuda")
    footprint = plan.footprint(shape, recipe)
    host = plan.host_bytes(shape, recipe)
    if as_json:
        whole: dict[str, Any] = {device: dict(planned.rows()) for device, planned in plans.items()}
        whole |= {"plain_peft_cuda": dict(plain.rows()), "footprint": footprint, "host": host}
        typer.echo(json.dumps(whole))
        return
    from rich.console import Console
    from rich.table import Table

    training = recipe.training
    bits = 8 * (shape.linear_weights // 2 + plan.quant_state(shape)) / shape.linear_weights
    table = Table(box=None, pad_edge=False, title_justify="left", title=f"{recipe.name}: GiB at the peak of a step")
    for title in ("part", "a GPU", "a CPU", "plain peft on a GPU"):
        table.add_column(title, justify="left" if title == "part" else "right")
    columns = [planned.rows() for planned in (*plans.values(), plain)]
    for lines in zip(*columns, strict=True):
        name = lines[0][0] if not lines[0][0].startswith("Peak") else "Peak"
        table.add_row(name, *(f"{nbytes / GIB:.3f}" for _, nbytes in lines))
    console = Console(highlight=False)
    console.print(table, soft_wrap=not console.is_terminal)
    typer.echo(
        f"{training.rows * training.accumulate} rows of {training.row_tokens} tokens a step; every token counted.\n"
        f"Pinned memory of the host beside a GPU: {host / GIB:.3f} GiB. A process on a CPU takes about half a GiB more."
    )
    if recipe.four_bit:
        typer.echo(
            f"A linear's weight takes {bits:.3f} bits with its scales. model.get_memory_footprint() would say "
            f"{footprint / GIB:.3f} GiB of the loaded model: it leaves the scales out "
            f"({plan.quant_state(shape) / GIB:.3f} GiB)."
        )
