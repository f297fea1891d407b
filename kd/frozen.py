"""The base of every config object: frozen, closed, documented by the text under each field."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A config object. An unknown key is an error; a field's docstring is its `--help` text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
