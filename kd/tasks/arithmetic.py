"""The value of an equation such as `( 84.0 / 2.0 )`, by a parser of its own: what a model writes is never executed.

sum     = product { ("+" | "-") product }
product = factor { ("*" | "/") factor }
factor  = ("+" | "-") factor | number | "(" sum ")"
"""

import re
from collections.abc import Sequence
from fractions import Fraction

MAX_DEPTH = 50
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|([-+*/()]))", re.ASCII)
_INSTEAD = "set match to normalised or exact"


def value_of(equation: str) -> Fraction:
    """The exact value of an equation. Raises ValueError if it is none, divides by zero, or nests deeper than `MAX_DEPTH`."""
    parser = _Parser(_tokens(equation))
    value = parser.sum(depth=0)
    if parser.tokens:
        raise ValueError(f"expected the end of the equation, got {parser.tokens[-1]!r}")
    return value


def has_same_value(one: str, other: str) -> bool:
    """Whether both are equations, of the same value."""
    try:
        return value_of(one) == value_of(other)
    except ValueError:
        return False


def has_value(text: str) -> bool:
    """Whether a text is an equation."""
    return has_same_value(text, text)


def check_values(labels: Sequence[str]) -> None:
    """Raise ValueError if labels cannot be told apart by their values: one has none, or two have the same."""
    for number, label in enumerate(labels):
        if not has_value(label):
            raise ValueError(f"match: value compares equations, and the label {label!r} has no value; {_INSTEAD}")
        same = next((other for other in labels[:number] if has_same_value(label, other)), None)
        if same is not None:
            raise ValueError(f"match: value compares equations, and {same!r} and {label!r} have the same value; {_INSTEAD}")


def _tokens(equation: str) -> list[str]:
    """Numbers, operators and brackets, the first one last."""
    tokens, position = [], 0
    text = equation.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"expected a number, an operator or a bracket, got {text[position : position + 20]!r}")
        tokens.append(match[match.lastindex or 0])
        position = match.end()
    return tokens[::-1]


class _Parser:
    """Recursive descent, one method per rule of the grammar; `tokens` is what is still to read, the next one last."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self._next() in ("+", "-"):
            value = value + self.product(depth) if self.tokens.pop() == "+" else value - self.product(depth)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while self._next() in ("*", "/"):
            times = self.tokens.pop() == "*"
            right = self.factor(depth)
            if not times and not right:
                raise ValueError("division by zero")
            value = value * right if times else value / right
        return value

    def factor(self, depth: int) -> Fraction:
        if not self.tokens or depth > MAX_DEPTH:
            raise ValueError("expected a number, got the end" if not self.tokens else f"more than {MAX_DEPTH} brackets deep")
        token = self.tokens.pop()
        if token in ("+", "-"):
            return self.factor(depth + 1) * (1 if token == "+" else -1)
        if token == "(":
            value = self.sum(depth + 1)
            if self._next() != ")":
                raise ValueError("a bracket is not closed")
            self.tokens.pop()
            return value
        return Fraction(token)

    def _next(self) -> str | None:
        return self.tokens[-1] if self.tokens else None
