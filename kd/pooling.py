"""An encoder with learned attention pooling and a linear head: a classifier for encoders that come without one.

Every token is given a weight by a learned query, the weights of a row's tokens sum to one, and the head reads the
weighted mean of their states. Saved as safetensors, loaded by plain transformers once this module is imported.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MODEL_TYPE = "attention_pooling_classifier"


class AttentionPoolingConfig(PreTrainedConfig):  # type: ignore[misc]
    """`encoder` is the config of the encoder as a dictionary; the classes are `id2label`, as everywhere."""

    model_type = MODEL_TYPE

    def __init__(self, encoder: dict[str, Any] | None = None, head_dropout: float = 0.1, **kwargs: Any) -> None:
        self.encoder = encoder or {"model_type": "bert"}
        self.head_dropout = head_dropout
        positions = self.encoder.get("max_position_embeddings")
        super().__init__(**{"max_position_embeddings": positions, **kwargs})


class AttentionPoolingClassifier(PreTrainedModel):  # type: ignore[misc]
    """Logits of shape [b, classes] from ids or from input embeddings."""

    config_class = AttentionPoolingConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: AttentionPoolingConfig) -> None:
        super().__init__(config)
        inner = dict(config.encoder)
        architecture = AutoConfig.for_model(inner.pop("model_type"), **inner)
        self.encoder = AutoModel.from_config(architecture)
        self.encoder.pooler = None  # its weights would learn nothing
        self.query = nn.Linear(architecture.hidden_size, 1)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(architecture.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Int[Tensor, "b t"] | None = None,
        inputs_embeds: Float[Tensor, "b t d"] | None = None,
    ) -> SequenceClassifierOutput:
        """Classify; without a mask every position counts."""
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        states = self.encoder(**given).last_hidden_state
        weights = self.query(states).squeeze(-1)
        if attention_mask is not None:
            weights = weights.masked_fill(attention_mask == 0, torch.finfo(weights.dtype).min)
        pooled = (weights.softmax(-1).unsqueeze(-1) * states).sum(1)
        return SequenceClassifierOutput(logits=self.head(self.dropout(pooled)))


AutoConfig.register(MODEL_TYPE, AttentionPoolingConfig, exist_ok=True)
AutoModelForSequenceClassification.register(AttentionPoolingConfig, AttentionPoolingClassifier, exist_ok=True)
