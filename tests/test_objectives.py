"""What a row teaches, and how losses add up."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from kd.training.objectives import LabelOnly, MultiTask, Target, Term, coefficients, sums_per_term, taught
from tests.tiny import example
from tests.tiny_runs import rationale_row


def test_label_only_reads_the_input_as_it_is() -> None:
    assert LabelOnly().targets(example()) == [Target(0, "", "money")]
    assert LabelOnly().answer_prefix == ""
    assert LabelOnly().terms == (Term("label", 1.0),)


def test_multi_task_asks_for_the_label_and_for_the_rationale() -> None:
    objective = MultiTask(alpha=0.25)
    assert objective.targets(rationale_row(example(), "find bank")) == [
        Target(0, "predict: ", "money"),
        Target(1, "explain: ", "find bank", may_be_cut=True),
    ]
    assert objective.answer_prefix == "predict: "
    assert objective.terms == (Term("label", 0.25), Term("rationale", 0.75))


def test_an_empty_rationale_teaches_the_label_only() -> None:
    assert MultiTask().targets(rationale_row(example(), "")) == [Target(0, "predict: ", "money")]


@pytest.mark.parametrize("objective", [LabelOnly(), MultiTask()])
def test_a_row_without_target_teaches_nothing(objective: LabelOnly | MultiTask) -> None:
    assert objective.targets(rationale_row(example(target=None), "bank")) == []


def test_multi_task_refuses_rows_that_have_no_rationale() -> None:
    with pytest.raises(TypeError, match="got Example"):
        MultiTask().targets(example())


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_the_weight_of_the_label_is_a_share(alpha: float) -> None:
    with pytest.raises(ValidationError):
        MultiTask(alpha=alpha)


def test_sums_are_per_term() -> None:
    sums = sums_per_term(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1]), terms=3)
    assert sums.tolist() == [2.0, 5.0, 0.0]
    nll = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    term = torch.arange(1000) % 3
    assert torch.allclose(sums_per_term(nll, term, 4), nll.new_zeros(4).index_add(0, term, nll), rtol=1e-6)


def test_a_loss_is_weight_times_sum_over_the_global_count() -> None:
    terms = MultiTask(alpha=0.25).terms
    # 0.25 * 6 nats / 3 tokens + 0.75 * 8 nats / 4 tokens
    assert sum(c * s for c, s in zip(coefficients(terms, [3, 4]), [6.0, 8.0], strict=True)) == 2.0
    assert coefficients(terms, [3, 0]) == [0.25 / 3, 0.0]


def test_the_gradient_of_a_sum_reaches_every_sequence() -> None:
    nll = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    (sums_per_term(nll, torch.tensor([0, 1, 0]), 2) * torch.tensor([0.5, 0.25])).sum().backward()
    assert nll.grad is not None
    assert nll.grad.tolist() == [0.5, 0.25, 0.5]


def test_the_teachers_answer_is_learned_unless_it_wrote_one_that_met_the_length_limit() -> None:
    row = replace(rationale_row(example(target=None), ""), explained="predicted", explained_answer="42 +", generated="42 +")
    assert taught(row, "teacher").target == "42 +"
    assert taught(replace(row, generated_cut=True), "teacher").target is None
    assert taught(replace(row, generated_cut=True, ranked="42"), "teacher").target == "42 +", "an answer that is ranked is whole"
