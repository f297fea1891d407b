"""The rows of a CSV file, read strictly (RFC 4180) as a stream; a malformed one is told with the numbers of its lines.

Behind a malformed row the reader goes on where it is clear where the next one begins. A quote that is not closed takes other
rows in, up to the next quote: then the lines behind its first one are read again, and have to be well-formed rows.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_CELL = 2**31 - 1
MOST_LINES = 100_000
"""A row that takes more lines than this has a quote that is not closed."""


@dataclass(frozen=True)
class Malformed:
    """A row that is none: the numbers of its first and last line, from 1, its text, and what is wrong with it."""

    first: int
    last: int
    text: str
    reason: str

    @property
    def lines(self) -> str:
        """Which lines of the file these are."""
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"


@dataclass(frozen=True)
class _Trial:
    """Up to which line rows must be well-formed behind a malformed one, and whether they may be malformed themselves.

    A cell that has a quote without beginning with one is what is left of a row that went on over the end of its line.
    """

    bad: Malformed
    last: int
    may_be_bad: bool


class CsvRows:
    """Iterates over the rows of lines that keep their ends: the header first, then cells as many as it has, or `Malformed`.

    Raises:
        csv.Error: the header is malformed, or it is not clear where a row begins; the line is named.
    """

    def __init__(self, lines: Iterator[str], delimiter: str) -> None:
        self._lines = _Lines(lines)
        self._delimiter = delimiter
        cell = rf'(?:"(?:[^"]|"")*"|[^"\r\n{re.escape(delimiter)}]*)'
        self._well_formed = re.compile(rf"{cell}(?:{re.escape(delimiter)}{cell})*[\r\n]*")
        self._reader = self._fresh()
        self._width = 0
        self._on_trial: _Trial | None = None

    def __iter__(self) -> Iterator[list[str] | Malformed]:
        return self

    def __next__(self) -> list[str] | Malformed:
        while True:
            self._lines.begin()
            try:
                cells = next(self._reader)
            except csv.Error as error:
                return self._malformed(str(error))
            if not cells:  # a blank line
                continue
            if len(cells) == self._width and not self._on_trial:
                return cells
            return self._checked(cells)

    def _fresh(self) -> Iterator[list[str]]:
        return csv.reader(self._lines, delimiter=self._delimiter, strict=True)

    def _checked(self, cells: list[str]) -> list[str] | Malformed:
        """A row that is the header, on trial, or of another length."""
        self._width = self._width or len(cells)
        fits = len(cells) == self._width
        trial = self._on_trial
        if trial and not (self._well_formed.fullmatch("".join(self._lines.taken)) and (fits or trial.may_be_bad)):
            raise self._lost(trial.bad)
        self._on_trial = trial if trial and self._lines.number < trial.last else None
        return cells if fits else self._taken(f"{len(cells)} cells, where the header has {self._width}")

    def _malformed(self, reason: str) -> Malformed:
        """What could not be read, and from where to go on."""
        bad = self._taken(f"a quote is not closed, or is not doubled within quotes ({reason})")
        trial = self._on_trial
        if not self._width or (trial and not trial.may_be_bad):
            raise self._lost(trial.bad if trial else bad)
        self._reader = self._fresh()
        in_pairs = bad.first == bad.last and bad.text.count('"') % 2 == 0
        if self._width == 1 and not in_pairs:  # any line is a row of one cell
            raise self._lost(bad)
        self._on_trial = _Trial(bad, max(bad.last, bad.first + 1), may_be_bad=in_pairs)
        self._lines.put_back()
        return self._taken(bad.reason)

    def _taken(self, reason: str) -> Malformed:
        last, taken = self._lines.number, self._lines.taken
        return Malformed(last - len(taken) + 1, last, "".join(taken).rstrip("\r\n"), reason)

    @staticmethod
    def _lost(bad: Malformed) -> csv.Error:
        return csv.Error(f"line {bad.first}: {bad.reason}, and it is not clear where the next row begins")


class _Lines:
    """Lines with their numbers, from 1, and those that the present row has taken."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self.number = 0
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.taken) >= MOST_LINES:
            raise csv.Error(f"more than {MOST_LINES:,} lines")
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        self.taken.append(line)
        return line

    def begin(self) -> None:
        """A row begins."""
        self.taken = []

    def put_back(self) -> None:
        """All lines of the row but its first are read again."""
        rest = self.taken[1:]
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)
        del self.taken[1:]
