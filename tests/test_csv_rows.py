"""CSV is read strictly: a malformed row is told by its line, and the reader goes on where the next row begins for sure."""

import csv
import io
import random

import pytest

from kd import csv_rows
from kd.csv_rows import CsvRows, Malformed

HEAD = "id,text,label\n"


def read(text: str, delimiter: str = ",") -> list[list[str] | Malformed]:
    return list(CsvRows(io.StringIO(text, newline=""), delimiter))


def said(text: str) -> list[str]:
    """The first cell of every row behind the header, or the lines of what is none."""
    return [row.lines if isinstance(row, Malformed) else row[0] for row in read(text)[1:]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('56,"he said "no" twice",1\n57,b,1\n', ["line 2", "57"]),
        ('56,"he said "no" twice",1\n57,"she "too" said",1\n58,b,0\n', ["line 2", "line 3", "58"]),
        ('1,a,0\n2,"not closed,1\n3,"fine",1\n4,b,0\n', ["1", "line 3", "3", "4"]),
        ('1,a,0\n2,"not closed,1\n3,fine,1\n4,b,0\n', ["1", "line 3", "3", "4"]),
        ('1,a,0\n2,"not closed,1\n3,"two\nlines",1\n4,b,0\n', ["1", "line 3", "3", "4"]),
        ('2,"a 5" pipe",1\n3,b,0\n', ["line 2", "3"]),
        ('2,"the last,1\n', ["line 2"]),
        ("1,a\n\n2,b,0\n", ["line 2", "2"]),
        ('1,"two\nlines",0,4\n2,b,0\n', ["lines 2 to 3", "2"]),
        ('1,5" pipe,0\n2,"say ""no""",0\r\n3,"a\r\nb",1\r\n', ["1", "2", "3"]),
    ],
)
def test_behind_a_malformed_row_the_next_one_is_read(rows: str, expected: list[str]) -> None:
    assert said(HEAD + rows) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (HEAD + '1,"a "q" and\nmore ""text"" here",1\n2,b,0\n', 2),  # the second line could be a row that is none
        (HEAD + '0,x,1\n1,"a "q and\nmore text, here",1\n', 3),
        ("id,text\n" + '1,"a "q and\nmore text here",1\n', 2),
        ("text\n" + '"a\nb\n', 2),  # every line is a row of one cell
        ('id,"text\n1,a\n', 1),
    ],
)
def test_where_it_is_not_clear_where_the_next_row_begins_the_line_is_named(text: str, line: int) -> None:
    with pytest.raises(csv.Error, match=f"^line {line}: a quote is not closed, .*not clear where the next row begins$"):
        read(text)


def test_blank_lines_are_no_rows_not_even_before_the_header() -> None:
    assert read("\n\r\nq,a\n\n1,2\n\n") == [["q", "a"], ["1", "2"]]


def test_a_quote_that_is_never_closed_takes_a_bounded_number_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MOST_LINES", 5)
    lines = iter([HEAD, '1,"open,0\n', *(f"{number},a,0\n" for number in range(2, 100))])
    rows = CsvRows(lines, ",")
    assert [next(rows), next(rows)][1] == Malformed(
        2, 2, '1,"open,0', "a quote is not closed, or is not doubled within quotes (more than 5 lines)"
    )
    assert next(lines) == "6,a,0\n"  # no more than five lines were taken
    assert [row[0] for row in rows if isinstance(row, list)] == [str(n) for n in (*range(2, 6), *range(7, 100))]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_what_the_standard_library_writes_is_read_as_it_was(delimiter: str) -> None:
    draw = random.Random(delimiter)
    cells = lambda: ["".join(draw.choices('ab"\n\r,\t;| é', k=draw.randrange(6))) for _ in range(3)]  # noqa: E731
    rows = [["x", "y", "z"], *(cells() for _ in range(300))]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    assert read(stream.getvalue(), delimiter) == rows


def test_one_stray_quote_costs_one_row_of_a_hundred() -> None:
    rows = [f'{number},"text, number {number}",{number % 2}\n' for number in range(100)]
    for broken in ('57,"he said "no" twice",1\n', '57,"not closed,1\n', '57,"closed" twice",1\n'):
        found = said(HEAD + "".join(rows[:57]) + broken + "".join(rows[58:]))
        assert found == [*map(str, range(57)), "line 59", *map(str, range(58, 100))]
