"""Which family a model belongs to, and how it is opened on a worker."""

import os

import torch

from kd.errors import ConfigError
from kd.families.base import Family
from kd.families.decoder_only import DecoderOnly
from kd.families.encoder_classifier import ChoiceScorer, EncoderClassifier
from kd.families.encoder_decoder import EncoderDecoder
from kd.families.trial import refusing, try_out
from kd.loading import load
from kd.models import Loaded, ModelConfig, ModelSource


def open_family(loaded: Loaded, limits: ModelConfig) -> Family:
    """A loaded model as its family, within the config's limits. One with weights is tried out when it is opened first.

    Raises:
        ConfigError: the family has no use for a chat template that is asked for, or what the family or `try_out` raises.
    """
    if loaded.chat_template and loaded.family != "decoder_only":
        kind = loaded.family.replace("_", "-")
        raise ConfigError(f"{loaded.name} is an {kind}, and chat_template = true is for causal models; leave it out")
    with refusing(loaded, "opening it"):
        family = _family_of(loaded)(loaded, limits.max_input_tokens, limits.max_answer_tokens, limits.generated_tokens)
    if loaded.embedding_scale is None and loaded.model.device.type != "meta":
        try:
            try_out(family)
        except BaseException:
            loaded.embedding_scale = None  # one that was refused is refused again
            raise
    return family


def load_family(source: ModelSource, device: str, threads: int) -> Family:
    """Load a model onto a device of `kd.loading.load` in its own process, which from now on computes with so many threads."""
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    return open_family(load(source, device), source.config)


def _family_of(loaded: Loaded) -> type[Family]:
    if loaded.family == "encoder_classifier":
        return ChoiceScorer if loaded.model.config.num_labels == 1 else EncoderClassifier
    return {"encoder_decoder": EncoderDecoder, "decoder_only": DecoderOnly}[loaded.family]
