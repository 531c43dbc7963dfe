"""`midwatch doctor`: what this machine has, what the engine will do with it, and what would make it faster."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from midwatch.errors import MidwatchError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor", help="Say what the engine will run on here, and what is missing.")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Check cores, memory, compiler, GPU, model and settings. Exit code 1 if the engine could not start."""
    import json

    found = examine()
    if as_json:
        typer.echo(json.dumps({name: {"ok": ok, "what": what} for name, (ok, what) in found.items()}))
    else:
        for name, (ok, what) in found.items():
            typer.secho(f"{'ok  ' if ok else 'LOOK'}  {name:<8} ", fg="green" if ok else "yellow", nl=False)
            typer.echo(what)
    if not found["model"][0] or not found["python"][0]:
        raise typer.Exit(1)


def examine() -> dict[str, tuple[bool, str]]:
    """Each part of what the engine needs: whether it is as it should be, and a sentence."""
    import torch

    from midwatch import settings as settings_module
    from midwatch.engine import hub
    from midwatch.engine.cores import usable_cores
    from midwatch.engine.cpu.build import why_unavailable
    from midwatch.engine.memory import available_cpu_bytes

    settings = settings_module.load()
    version = ".".join(map(str, sys.version_info[:3]))
    found: dict[str, tuple[bool, str]] = {
        "python": (sys.version_info >= (3, 11), f"{version}, torch {torch.__version__}"),
        "cores": (True, f"{settings.engine.threads or usable_cores()} threads will compute"),
        "memory": (True, f"{available_cpu_bytes() / 1e9:.1f} GB can be taken"),
    }
    reason = why_unavailable(settings.kernel_dir)
    if reason is None:
        found["kernels"] = (True, f"the C step is compiled and kept in {settings.kernel_dir}")
    else:
        found["kernels"] = (False, f"PyTorch computes, several times slower in decode: {reason}")
    if torch.cuda.is_available():
        found["gpu"] = (True, f"{torch.cuda.get_device_name()} computes (engine.device = cpu would not use it)")
    else:
        found["gpu"] = (True, "none; the CPU computes")
    try:
        found["model"] = (True, f"{settings.engine.model} at {hub.resolve(settings.engine.model, settings.cache_dir)}")
    except MidwatchError as error:
        found["model"] = (False, f"{error.what} {error.next_step}")
    return found
