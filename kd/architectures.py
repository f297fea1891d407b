"""Which family a model belongs to, told from its config alone, and the class of transformers that loads it."""

from typing import TYPE_CHECKING, Any, Literal

from kd.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FamilyName = Literal["encoder_decoder", "decoder_only", "encoder_classifier"]

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_SEQ2SEQ = ("ForConditionalGeneration", "EncoderDecoderModel")
_CLASSIFIER = ("ForSequenceClassification", "PoolingClassifier")


def family_of(name: str, architecture: "PreTrainedConfig") -> FamilyName:
    """The family of a model by its config.

    Raises:
        InputError: it is none of the three, for instance an encoder without a head.
    """
    made = (architecture.architectures or [""])[0]
    if architecture.is_encoder_decoder and (not made or made.endswith(_SEQ2SEQ)):
        return "encoder_decoder"
    if made.endswith(_CAUSAL):
        return "decoder_only"
    if made.endswith(_CLASSIFIER) and _is_encoder(architecture):
        return "encoder_classifier"
    raise InputError(
        f"{name} is a {architecture.model_type} model ({made or 'its config names no architecture'}); expected an encoder-decoder"
        " (google/flan-t5-base, facebook/bart-base), a causal model (Qwen/Qwen3-8B), or an encoder with a classification head."
        " An encoder alone can be the start of one: spec.type = warm_start or pooled_classifier"
    )


def loader_of(family: FamilyName) -> Any:
    """The class whose `from_pretrained` and `from_config` make a model of the family."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    loaders: dict[FamilyName, Any] = {
        "encoder_decoder": AutoModelForSeq2SeqLM,
        "decoder_only": AutoModelForCausalLM,
        "encoder_classifier": AutoModelForSequenceClassification,
    }
    return loaders[family]


def _is_encoder(architecture: "PreTrainedConfig") -> bool:
    """Whether every position sees every other: causal classifiers look at one last token, which padding moves."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    from kd.pooling import MODEL_TYPE

    known = architecture.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not architecture.is_encoder_decoder
    return known or architecture.model_type == MODEL_TYPE
