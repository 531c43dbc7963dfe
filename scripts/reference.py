"""Write `docs/settings.md` and `docs/commands.md` from the code, or check them against it (`--check`)."""

from __future__ import annotations

import argparse
import sys
import types
import typing
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from midwatch.cli import cli
from midwatch.settings import ProviderSettings, Settings, SourceSettings

DOCS = Path(__file__).resolve().parent.parent / "docs"
HOME = str(Path.home())


def _type_words(annotation: Any) -> str:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_type_words(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return f"list of {_type_words(typing.get_args(annotation)[0])}"
    words = {type(None): "none", bool: "yes or no", str: "text", int: "whole number", float: "number", Path: "path"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)).replace("SecretStr", "secret text"))


def _default_words(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ((), {}):
        return "none"
    return f"`{str(value).replace(HOME, '~')}`"


def _section(title: str, prefix: str, model: type[BaseModel], note: str = "") -> list[str]:
    lines = [f"## {title}", "", note or (model.__doc__ or "").strip().splitlines()[0], ""]
    lines += ["| setting | takes | default | what it does |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        inner = field.annotation
        if (isinstance(inner, type) and issubclass(inner, BaseModel)) or name == "sources":
            continue
        description = " ".join((field.description or "").split())
        lines.append(f"| `{prefix}{name}` | {_type_words(inner)} | {_default_words(field)} | {description} |")
    return [*lines, ""]


def settings_page() -> str:
    """Every setting, with its type, default and sentence."""
    lines = [
        "# Settings",
        "",
        "Settings are read once, at the start of a command: arguments win over `MIDWATCH_*` variables, which win over",
        "`./midwatch.toml` (or the file that `MIDWATCH_CONFIG` names), which wins over the defaults. In a variable, a",
        "section and its field are joined by two underscores: `engine.threads` is `MIDWATCH_ENGINE__THREADS`. An",
        "unknown name is an error, never ignored.",
        "",
        *_section("Top level", "", Settings, "Where things are kept."),
    ]
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += _section(f"[{name}]", f"{name}.", field.annotation)
    lines += _section("[sources.NAME]", "sources.NAME.", SourceSettings)
    lines += _section("[copilot.escalation]", "copilot.escalation.", ProviderSettings)
    return "\n".join(lines).rstrip() + "\n"


def _commands(command: Any, name: str) -> list[str]:
    """Sections for a command and those below it (typer carries its own copy of click, hence the duck typing)."""
    children: dict[str, Any] = getattr(command, "commands", {})
    if children:
        return [
            line for key, child in children.items() if not child.hidden for line in _commands(child, f"{name} {key}")
        ]
    lines = [f"## {name}", "", (command.help or "").strip(), ""]
    shown = [parameter for parameter in command.params if "--help" not in parameter.opts]
    if shown:
        lines += ["| argument or option | what it does |", "|---|---|"]
    for parameter in shown:
        label = ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
        lines.append(f"| `{label}` | {' '.join((getattr(parameter, 'help', '') or '').split())} |")
    return [*lines, ""]


def commands_page() -> str:
    """Every command with its help."""
    head = ["# Commands", "", "Each command ends with 0 when it did its work, 2 when it says what to mend.", ""]
    return "\n".join([*head, *_commands(typer.main.get_command(cli), "midwatch")]).rstrip() + "\n"


def main() -> None:
    """Rewrite or check both pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page differs from the code")
    check = parser.parse_args().check
    for path, text in ((DOCS / "settings.md", settings_page()), (DOCS / "commands.md", commands_page())):
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            sys.exit(f"docs/{path.name} is not what the code says. Run python scripts/reference.py.")
        if not check:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
