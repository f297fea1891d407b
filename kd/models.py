"""Models: which one a config means, where it comes from, and what it is once loaded; `kd/loading.py` loads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from kd.architectures import FamilyName
from kd.frozen import Frozen
from kd.manifests import digest
from kd.origins import check_there, commit_of, content_of
from kd.specs import Spec, T5Spec
from kd.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class ModelConfig(Frozen):
    """Which model, and within which limits it is used. Exactly one of `name` and `spec` is set."""

    name: str | None = None
    """A hub id or a local folder in the hub's layout."""
    revision: str = "main"
    """Branch, tag or commit of a hub id. What it resolved to is recorded."""
    spec: Spec | None = None
    """A model to build instead of loading one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights."""
    max_input_tokens: PositiveInt = 512
    """Longer inputs lose tokens from their longest segment; options and prompts are never cut."""
    max_answer_tokens: PositiveInt = 64
    """Limit of an answer, its end-of-sequence token included."""
    max_generated_tokens: PositiveInt | None = None
    """The same for answers that the model writes itself; null: `max_answer_tokens`, which then only limits what is learned."""
    chat_template: bool = False
    """For causal models: whether the input is put into the tokenizer's chat template, as a user's message."""
    chat_template_kwargs: dict[str, bool | int | str] = Field(default={})
    """Variables of the chat template, as transformers' apply_chat_template takes them: {enable_thinking: false} switches off
    Qwen3's thinking."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    allow_pickle: bool = False
    """Whether weights may be a pickle (`pytorch_model.bin`), which can run code, where there are no safetensors."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _says_true_or_false(cls, given: dict[str, bool | int | str]) -> dict[str, bool | int | str]:
        """A command line spells out false as text, which a template would take for true."""
        said: dict[object, bool] = {"true": True, "false": False}
        return {key: said.get(value, value) for key, value in given.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelConfig":
        if (self.name is None) == (self.spec is None):
            raise ValueError("expected exactly one of name (a hub id or a local folder) and spec (a model to build)")
        if self.spec is not None and self.chat_template:
            raise ValueError("chat_template is for causal models, and no spec builds one; leave it out")
        if self.chat_template_kwargs and not self.chat_template:
            raise ValueError("chat_template_kwargs are for a chat template; set chat_template: true or leave them out")
        return self

    @property
    def generated_tokens(self) -> int:
        """The limit of an answer that the model writes itself."""
        return self.max_generated_tokens or self.max_answer_tokens


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from; small and picklable.

    It is `folder` of the run directory `store` if set, else the config's name, else its spec, with the tokenizer in
    `tokenizer_folder` of `store`. Weights that no file holds are drawn from `seed`. What lies in `folder` was trained by a run
    on answers and the end behind them; of another model nobody knows what it writes behind an answer.
    """

    config: ModelConfig
    store: Store | None = None
    folder: str | None = None
    tokenizer_folder: str | None = None
    seed: int = 0

    @property
    def trained_here(self) -> bool:
        """Whether a run trained the model, on answers and the end behind them."""
        return self.folder is not None


@dataclass
class Loaded:
    """A model in evaluation mode with its tokenizer.

    `name` identifies the weights: "hub-id@commit", "folder@digest of its files" or "spec:digest@seed0". `trained_here` is its
    source's, the chat template's fields are its config's. `embedding_scale` is what the model multiplies an embedding by where
    it is given ids, and not where it is given embeddings; None until `kd.families.trial` has measured it.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerFast"
    name: str
    family: FamilyName = "encoder_decoder"
    chat_template: bool = False
    chat_template_kwargs: Mapping[str, bool | int | str] = field(default_factory=dict)
    trained_here: bool = False
    embedding_scale: float | None = None


def identity(config: ModelConfig, tokenizer_folder: str | None) -> str:
    """What tells the model of a config from every other, before it is loaded: where it comes from, and what is there now.

    It is "hub-id@commit", "folder@digest of its files", or a digest of a spec and of what that starts from: an encoder, or
    the tokenizer in `tokenizer_folder`, whose name says what it was trained on.

    Raises:
        InputError: there is no such folder.
    """
    spec = config.spec
    if isinstance(spec, T5Spec):
        return f"spec:{digest(spec.model_dump(), tokenizer_folder)}"
    name = config.name if spec is None else spec.origin
    assert name is not None  # ModelConfig has one of the two
    check_there(name)
    held = content_of(name, commit_of(name, config.revision))
    return f"{name}@{held}" if spec is None else f"spec:{digest(spec.model_dump(), held)}"


def needs_tokenizer(config: ModelConfig) -> bool:
    """Whether the model has no tokenizer of its own, so that one must be trained on the corpus first."""
    return isinstance(config.spec, T5Spec)
