"""`midwatch bench`: how fast the engine is here, beside what the memory allows, and how fast a server answers."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midwatch.errors import SettingsError

if TYPE_CHECKING:
    from midwatch.engine.benchmarks import Roofline
    from midwatch.engine.engine import Engine
    from midwatch.engine.percentiles import Percentiles

MODEL = Annotated[str | None, typer.Option(help="pypi:NAME, hf:ORG/NAME or a path; the settings' model if absent.")]
PROMPT = Annotated[str, typer.Option(help="Tokens of a prompt: a number, or LEAST-MOST to draw from.")]
NEW = Annotated[str, typer.Option(help="Tokens of an answer: a number, or LEAST-MOST to draw from.")]
SHARED = Annotated[int, typer.Option(help="Further tokens that every prompt begins with.", min=0)]
SEED = Annotated[int, typer.Option(help="Of lengths and tokens.")]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, help="Measure the engine, or a server from outside.")
    group.command("latency", help="Time one batch of equal requests, in this process.")(latency)
    group.command("throughput", help="Time many requests, in this process.")(throughput)
    group.command("serve", help="Time a running OpenAI-compatible server over HTTP.")(serve)
    app.add_typer(group, name="bench")


def latency(
    *,
    model: MODEL = None,
    batch: Annotated[int, typer.Option(help="Requests at a time.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Times to measure; one more is not counted.", min=1)] = 3,
    as_json: AS_JSON = False,
) -> None:
    """Print the time to the first token, the time of a decode step, tokens/s and the share of the roofline."""
    from midwatch.engine import benchmarks

    engine = _engine(model, batch=batch)
    bandwidth = benchmarks.measure_bandwidth_gb_s(engine.backend.device, engine.threads)
    found = benchmarks.latency(
        engine,
        batch=batch,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        bandwidth_gb_s=bandwidth,
    )
    rounds_seen = ", ".join(f"{speed:,.0f}" for speed in found.rounds_tokens_per_s)
    _show(
        f"{batch} × ({prompt_tokens} + {new_tokens}) tokens on {found.backend}",
        {
            "time to first token": f"{found.ttft_ms:,.1f} ms",
            "prefill": f"{found.prefill_tokens_per_s:,.0f} tokens/s",
            "decode step": _milliseconds(found.step_ms),
            "decode": f"{found.decode_tokens_per_s:,.1f} tokens/s (rounds: {rounds_seen})",
            **_roofline(found.roofline),
        },
        asdict(found) | {"roofline_share": found.roofline.share},
        as_json=as_json,
    )


def throughput(
    *,
    model: MODEL = None,
    requests: Annotated[int, typer.Option(help="Requests in all.", min=1)] = 64,
    prompt_tokens: PROMPT = "100-500",
    new_tokens: NEW = "50-150",
    shared_prefix: SHARED = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    seed: SEED = 0,
    as_json: AS_JSON = False,
) -> None:
    """Print tokens/s over the whole run, what a request waits, and the share of the roofline."""
    from midwatch.engine import benchmarks

    lengths, budgets = _range("--prompt-tokens", prompt_tokens), _range("--new-tokens", new_tokens)
    engine = _engine(model)
    bandwidth = benchmarks.measure_bandwidth_gb_s(engine.backend.device, engine.threads)
    found = benchmarks.throughput(
        engine,
        requests=requests,
        prompt_tokens=lengths,
        new_tokens=budgets,
        shared_prefix=shared_prefix,
        seed=seed,
        temperature=temperature,
        bandwidth_gb_s=bandwidth,
    )
    _show(
        f"{requests} requests on {found.backend}",
        {
            "output": f"{found.output_tokens_per_s:,.1f} tokens/s",
            "prompts and output": f"{found.total_tokens_per_s:,.1f} tokens/s",
            "requests": f"{found.requests_per_s:,.2f} /s, {found.seconds:,.1f} s in all",
            "tokens": f"{found.prompt_tokens:,} of prompts ({found.cached_tokens:,} cached), {found.new_tokens:,} new",
            "steps": f"{found.steps:,}, {found.preemptions} preemptions",
            "time to first token": _milliseconds(found.ttft_ms),
            "whole request": _milliseconds(found.e2e_ms),
            **_roofline(found.roofline),
        },
        asdict(found) | {"roofline_share": found.roofline.share},
        as_json=as_json,
    )


def serve(
    url: Annotated[str, typer.Argument(help="Where the server listens, such as http://127.0.0.1:8011.")],
    *,
    model: Annotated[str | None, typer.Option(help="Name to ask for; the first that it serves if absent.")] = None,
    clients: Annotated[int, typer.Option(help="Clients at a time.", min=1)] = 8,
    requests: Annotated[int, typer.Option(help="Requests in all.", min=1)] = 64,
    prompt_tokens: PROMPT = "100-500",
    new_tokens: NEW = "50-150",
    shared_prefix: SHARED = 0,
    seed: SEED = 0,
    as_json: AS_JSON = False,
) -> None:
    """Print percentiles of the time to the first token, per token and in all, and tokens/s. Exit 1 if any failed."""
    import asyncio

    from midwatch.serving import http_benchmark

    found = asyncio.run(
        http_benchmark.measure(
            url,
            clients=clients,
            requests=requests,
            prompt_tokens=_range("--prompt-tokens", prompt_tokens),
            new_tokens=_range("--new-tokens", new_tokens),
            model=model,
            shared_prefix=shared_prefix,
            seed=seed,
        )
    )
    rows = {
        "output": f"{found.output_tokens_per_s:,.1f} tokens/s",
        "requests": f"{found.requests_per_s:,.2f} /s, {found.seconds:,.1f} s in all",
        "time to first token": _milliseconds(found.ttft_ms),
        "time per output token": _milliseconds(found.tpot_ms),
        "between two events": _milliseconds(found.itl_ms),
        "whole request": _milliseconds(found.e2e_ms),
    }
    if found.failed:
        rows["failed"] = f"{found.failed}; the first: {found.first_failure}"
    _show(
        f"{clients} clients, {requests} requests to {found.model} at {found.url}", rows, asdict(found), as_json=as_json
    )
    if found.failed:
        raise typer.Exit(1)


def _engine(model: str | None, *, batch: int = 0) -> Engine:
    """The engine of the settings, with places for `batch` requests at least, ready to run."""
    from midwatch import settings as settings_module
    from midwatch.engine import hub
    from midwatch.engine.cores import spin_briefly

    spin_briefly()
    from midwatch.engine.engine import Engine

    settings = settings_module.load()
    path = hub.resolve(model or settings.engine.model, settings.cache_dir)
    places = {"max_num_seqs": max(batch, settings.engine.max_num_seqs)}
    engine = Engine.load(path, settings.engine.model_copy(update=places), kernel_dir=settings.kernel_dir)
    engine.bind_thread()
    engine.warm_up()
    return engine


def _range(option: str, text: str) -> tuple[int, int]:
    """`100` or `100-500`."""
    found = re.fullmatch("([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
    if found is not None:
        least, most = int(found[1]), int(found[2] or found[1])
        if 0 < least <= most:
            return least, most
    raise SettingsError(f"{option} is {text[:40]!r}.", "Give a number such as 100, or two such as 100-500.")


def _milliseconds(times: Percentiles) -> str:
    return f"p50 {times.p50:,.1f}, p95 {times.p95:,.1f}, p99 {times.p99:,.1f} ms"


def _roofline(roofline: Roofline) -> dict[str, str]:
    return {
        "read per step": f"{roofline.bytes_per_step / 1e6:,.1f} MB",
        "achieved": f"{roofline.achieved_gb_s:,.2f} GB/s",
        "memory gives": f"{roofline.bandwidth_gb_s:,.2f} GB/s",
        "share of the roofline": f"{roofline.share:.0%}",
    }


def _show(title: str, rows: dict[str, str], values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
