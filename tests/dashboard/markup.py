"""What a browser would make of a page: whether its tags balance, and what in it could run."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Parses a page and gathers what the tests ask of it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        if self.open:
            self.problems.append(f"never closed: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if len(attributes) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing, at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("script", "style") and data.strip():
            self.problems.append(f"inline <{self.open[-1]}>")

    @property
    def text(self) -> str:
        """The words of the page."""
        return " ".join(" ".join(self.words).split())

    def breaches(self) -> list[str]:
        """What the content security policy would stop, or what could fetch from elsewhere."""
        found = list(self.problems)
        for tag, attributes in self.tags:
            found += [f"<{tag} {name}>" for name in attributes if name.startswith("on") or name == "style"]
            found += [f"<{tag} {name}>" for name in attributes if name.startswith("hx-on")]
            if tag in ("iframe", "object", "embed", "base", "style"):
                found.append(f"<{tag}>")
            for name in ("src", "href", "action"):
                if name in attributes and not attributes[name].startswith(("/", "#")):
                    found.append(f"<{tag} {name}={attributes[name]!r}>")
        return found
