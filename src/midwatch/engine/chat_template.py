"""Lay out a conversation with the model's own Jinja template, safely.

Two kinds of other people's text meet here. A template comes with the weights: it runs in Jinja's immutable sandbox
with a budget of steps and of characters, few filters and few string methods. Message contents come from logs: a
character that occurs in none of them is put after every character that could begin a special token, so that no
special token can begin inside a content, and is taken out again once the rendered text has been cut at the special
tokens that are left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from midwatch.errors import ModelError, RequestError

ROLES = ("system", "user", "assistant", "tool")
MAX_TEMPLATE_CHARS = 1 << 16
MAX_TEXT_CHARS = 1 << 22
MAX_STEPS = 100_000
MAX_MESSAGES = 1_000
FILTERS = frozenset(
    {
        "trim",
        "tojson",
        "upper",
        "lower",
        "length",
        "count",
        "first",
        "last",
        "default",
        "d",
        "string",
        "int",
        "list",
        "items",
        "selectattr",
        "rejectattr",
        "safe",
        "capitalize",
        "title",
    }
)
STRING_METHODS = frozenset({"strip", "lstrip", "rstrip", "split", "startswith", "endswith", "upper", "lower", "title"})
MARKS = [chr(code) for code in range(0xE000, 0xF8FF)]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of rendered text: either one special token of the template's own, or ordinary text."""

    text: str
    special: bool


class ChatTemplate:
    """A compiled template.

    A missing, too long or broken one raises `ModelError` when it is used, not when it is read.
    """

    def __init__(self, source: object, *, special_tokens: tuple[str, ...], bos_token: str, eos_token: str) -> None:
        self._source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        longest_first = sorted((token for token in special_tokens if token), key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        starts = {token[0] for token in longest_first}
        self._starts = re.compile("([" + re.escape("".join(sorted(starts))) + "])") if starts else None
        self._template: Any = None
        self._budget = _Budget()

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True) -> list[Piece]:
        """The conversation as pieces, in order.

        Raises `RequestError` for malformed messages, `ModelError` otherwise.
        """
        checked = _check_messages(messages)
        mark = _unused_mark(checked)
        guarded = [{**message, "content": self._guard(message["content"], mark)} for message in checked]
        text = self._run(guarded, add_generation_prompt)
        if self._special is None:
            return [Piece(text.replace(mark, ""), False)]
        parts = self._special.split(text)  # text, token, text, token, ..., text
        pieces = [Piece(part.replace(mark, ""), index % 2 == 1) for index, part in enumerate(parts)]
        return [piece for piece in pieces if piece.text]

    def _guard(self, content: str, mark: str) -> str:
        return content if self._starts is None else self._starts.sub(rf"\1{mark}", content)

    def _run(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        import jinja2

        if self._template is None:
            self._template = _compile(self._source, self._budget)
        self._budget.reset()
        limit = MAX_TEXT_CHARS + sum(2 * len(message["content"]) for message in messages)
        parts: list[str] = []
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._tokens
            ):
                parts.append(part)
                limit -= len(part)
                if limit < 0:
                    raise ModelError("The chat template writes without end.", "Choose another model file.")
        except _Refused as error:
            why = f"The model's chat template refuses these messages: {error}"
            raise RequestError(why, param="messages") from None
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise ModelError(
                f"The chat template failed: {type(error).__name__}: {str(error)[:200]}",
                "Choose another model file, or send a plain prompt.",
            ) from None
        return "".join(parts)


class _Refused(Exception):
    """The template called `raise_exception`."""


class _Budget:
    """How many loop turns and calls a template may still make."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS

    def reset(self) -> None:
        self.steps = MAX_STEPS

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise ValueError(f"more than {MAX_STEPS} steps")


def _compile(source: object, budget: _Budget) -> Any:
    """Compile a template whose every loop turn, call and joining of strings is counted and bounded."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import loopcontrols

    if not isinstance(source, str) or not source:
        raise ModelError("The model file holds no chat template.", "Use /v1/completions with a plain prompt.")
    if len(source) > MAX_TEMPLATE_CHARS:
        raise ModelError(f"The chat template has {len(source)} characters; {MAX_TEMPLATE_CHARS} are allowed.")
    environment = _sandbox(budget)(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], undefined=jinja2.Undefined
    )
    environment.filters = {name: call for name, call in environment.filters.items() if name in FILTERS}
    environment.filters["_turns"] = lambda items: _turns(items, budget)
    environment.filters["_joined"] = _joined
    environment.globals = {
        "raise_exception": _refuse,
        "namespace": environment.globals["namespace"],
        "range": environment.globals["range"],
    }
    try:
        tree = environment.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_turns", [], [], None, None, lineno=loop.lineno)
        for joining in list(tree.find_all(nodes.Concat)):
            parts = nodes.List(list(joining.nodes), lineno=joining.lineno)
            joining.nodes = [nodes.Filter(parts, "_joined", [], [], None, None, lineno=joining.lineno)]
        tree.set_environment(environment)
        return environment.from_string(tree)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ModelError(f"The chat template cannot be read: {error}.", "Choose another model file.") from None


def _sandbox(budget: _Budget) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if operator in ("*", "%") and not numbers:
                raise ValueError(f"{operator} is for numbers")
            if operator in ("*", "**") and max(abs(left), abs(right)) > 1_000:
                raise ValueError(f"{operator} of numbers above 1000")
            result = super().call_binop(context, operator, left, right)
            _bounded(result)
            return result

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            budget.spend()
            return super().call(context, obj, *args, **kwargs)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, str):
                return attr in STRING_METHODS
            return super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> None:
            """No `str.format`: a width in it makes text of any size."""

    return Sandbox


def _turns(items: Iterable[Any], budget: _Budget) -> Iterator[Any]:
    for item in items:
        budget.spend()
        yield item


def _joined(parts: list[Any]) -> str:
    text = [str(part) for part in parts]
    if sum(map(len, text)) > MAX_TEXT_CHARS:
        raise ValueError("a text of more than 4 million characters")
    return "".join(text)


def _bounded(value: Any) -> None:
    if isinstance(value, str | list | tuple) and len(value) > MAX_TEXT_CHARS:
        raise ValueError("a value of more than 4 million items")


def _refuse(reason: object = "") -> str:
    raise _Refused(str(reason)[:300])


def _check_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    if not messages or len(messages) > MAX_MESSAGES:
        raise RequestError(f"messages has {len(messages)} entries; 1 to {MAX_MESSAGES} are allowed.", param="messages")
    checked = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES:
            raise RequestError(
                f"messages[{index}].role is {str(role)[:40]!r}; allowed are {', '.join(ROLES)}.", param="messages"
            )
        if not isinstance(content, str):
            raise RequestError(f"messages[{index}].content is not a string.", param="messages")
        checked.append({"role": role, "content": content})
    return checked


def _unused_mark(messages: list[dict[str, str]]) -> str:
    """A private-use character that no message holds."""
    used = set().union(*(message["content"] for message in messages))
    for mark in MARKS:
        if mark not in used:
            return mark
    raise RequestError("The messages hold every private-use character; leave one out.", param="messages")
