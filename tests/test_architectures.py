"""Every architecture of transformers' lists is opened, or refused with a reason; the page that says which is up to date."""

import pytest

from tests.tiny_architectures import PAGE, UNTRIED, WORKS, page, verdict


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)
def test_the_page_of_architectures_says_what_opening_says() -> None:
    """Nothing but a refusal is caught there, so no architecture ends in another error."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("name", "said"), [("t5", WORKS), ("pegasus", WORKS), ("fsmt", "refused: opening it fails with AttributeError")]
)
def test_some_lines_of_the_page(name: str, said: str) -> None:
    found = verdict(name, "encoder_decoder")
    assert found.startswith(said)
    assert any(name in line and found in line for line in PAGE.read_text(encoding="utf-8").splitlines())
    assert found != UNTRIED
