"""Micro-batches under a budget of padded tokens, for everything that runs rows through a model."""

from collections.abc import Sequence


def cut(lengths: Sequence[tuple[int, int]], budget_tokens: int) -> list[list[int]]:
    """Rows grouped with rows of like length, longest first, so that little is padded and too much shows at once.

    Args:
        lengths: input and answer tokens of each row.
        budget_tokens: rows x (longest input + longest answer) stays within it; a longer row is alone in its batch.

    Returns:
        Indices of the rows, each in one batch. Rows of equal length keep their order.
    """
    batches: list[list[int]] = []
    widest_input = widest_answer = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i][0], -lengths[i][1])):
        input_tokens, answer_tokens = lengths[index]
        widest_input, widest_answer = max(widest_input, input_tokens), max(widest_answer, answer_tokens)
        if not batches or (len(batches[-1]) + 1) * (widest_input + widest_answer) > budget_tokens:
            batches.append([])
            widest_input, widest_answer = input_tokens, answer_tokens
        batches[-1].append(index)
    return batches


def padded_waste_frac(lengths: Sequence[tuple[int, int]], batches: Sequence[Sequence[int]]) -> float:
    """The share of the computed positions that are padding, from 0 to below 1."""
    used = sum(sum(lengths[index]) for batch in batches for index in batch)
    computed = sum(len(batch) * (max(lengths[i][0] for i in batch) + max(lengths[i][1] for i in batch)) for batch in batches)
    return 1 - used / computed if computed else 0.0
