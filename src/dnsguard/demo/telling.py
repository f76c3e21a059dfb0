"""How the demo tells its story: coloured on a terminal, plain text in a pipe, each line as soon as it is true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console

from dnsguard.demo.acts import Act, Step

LABEL: Final = 10


class Teller:
    def __init__(self) -> None:
        self._console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)

    def say(self, text: str = "", style: str = "") -> None:
        self._console.print(text, style=style)

    def heading(self, text: str) -> None:
        self.say()
        self.say(text, "bold")

    def columns(self, rows: Iterable[Sequence[str]]) -> None:
        """Rows of the same length, the last column as long as it likes."""
        table = list(rows)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            self.say("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())

    def before(self, act: Act) -> None:
        self.say(f"   {act.does}", "cyan")
        self._labelled("expected", act.expects, "dim")

    def after(self, happened: str, as_expected: bool) -> None:
        self._labelled("happened", happened)
        self.say(f"     {verdict(as_expected)}", "green" if as_expected else "bold red")

    def results(self, results: Iterable[tuple[Step, bool]]) -> None:
        self.heading("Results")
        self.columns((verdict(good), f"{number}. {step.title}") for number, (step, good) in enumerate(results, 1))

    def _labelled(self, label: str, text: str, style: str = "") -> None:
        for line in text.split("\n"):
            self.say(f"     {label:<{LABEL}}{line}".rstrip(), style)
            label = ""


def verdict(as_expected: bool) -> str:
    return "OK" if as_expected else "FAILED"
