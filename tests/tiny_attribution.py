"""Attributions by tiny models: every method, and a call that lets no row fail."""

from collections import Counter

from kd.attribution.engine import AttributionConfig, Engine
from kd.attribution.methods import InputXGradient, IntegratedGradients, MethodConfig, Occlusion, Saliency
from kd.families.base import Family
from kd.models import Loaded
from kd.rows import Attribution, Example
from tests import tiny

METHODS: list[MethodConfig] = [Saliency(), Saliency(norm="l2"), InputXGradient(), IntegratedGradients(n_steps=8), Occlusion()]


def attribute(loaded: Loaded, rows: list[Example], **config: object) -> list[Attribution]:
    return attribute_with(tiny.family(loaded), rows, **config)


def attribute_with(family: Family, rows: list[Example], **config: object) -> list[Attribution]:
    results = Engine(AttributionConfig(**config), family).attribute(rows, Counter())
    assert all(isinstance(result, Attribution) for result in results), results
    return results
