"""Models from the hub, from a folder, or built from a spec: loaded and built with their tokenizer, written, and counted.

Weights are safetensors, half precision is bfloat16 (T5 overflows in float16), and code from a model's repository runs
only where the config allows it.
"""

import logging
import platform
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kd.architectures import FamilyName, family_of, loader_of
from kd.errors import ConfigError, InputError
from kd.manifests import digest
from kd.models import Loaded, ModelConfig, ModelSource
from kd.origins import check_not_pickled, check_there, check_tokenizer_files, commit_of, content_of, explained
from kd.refusals import written
from kd.specs import PooledClassifierSpec, Spec, T5Spec
from kd.store import Store


def load(source: ModelSource, device: str) -> Loaded:
    """Load or build the model of a source onto a device.

    That is "cpu", "cuda", "spread" (over all GPUs that this process sees, for a model larger than one; a model that is built
    from a spec is small and goes onto the first) or "meta", where weights are not loaded from a hub id or folder.

    Raises:
        ConfigError: the config asks for a GPU, a package, a tokenizer or a permission that is not there.
        InputError: there is no such model, its weights are incomplete, or it is of no known family.
    """
    check_device(device)
    with _quiet(), seeded(source.seed):
        loaded = _from_origin(source, device)
    if not loaded.tokenizer.is_fast:
        raise InputError(f"{loaded.name}: its tokenizer gives no character offsets; expected one with a tokenizer.json")
    loaded.chat_template, loaded.chat_template_kwargs = source.config.chat_template, source.config.chat_template_kwargs
    loaded.trained_here = source.trained_here
    loaded.model.eval()
    if device != "spread":
        loaded.model.to(device=device)
    elif source.folder is None and source.config.spec is not None:
        loaded.model.to(device="cuda")
    if device == "cpu" and source.config.dtype == "bfloat16":
        # The backward of torch's fused attention is slower in bf16 than in fp32 there; plain matrix products are not.
        loaded.model.set_attn_implementation("eager")
    return loaded


def without_weights(spec: T5Spec, tokenizer: Any) -> Loaded:
    """The model of a spec on the device "meta", for a tokenizer that has just been trained."""
    with _weightless(True):
        return Loaded(spec.build(tokenizer), tokenizer, f"spec {spec.type} with a {spec.tokenizer} tokenizer of the corpus")


def count_parameters(source: ModelSource) -> int:
    """How many parameters a model has, tied ones once; its weights are not loaded, except those that a spec starts from."""
    return sum(parameter.numel() for parameter in load(source, "meta").model.parameters())


def save(loaded: Loaded, local: Path) -> None:
    """Write weights (safetensors) and tokenizer so that plain transformers loads them. Raises StoreError without space."""
    with _quiet(), written(str(local)):
        loaded.model.save_pretrained(local)
        loaded.tokenizer.save_pretrained(local)


def _from_origin(source: ModelSource, device: str) -> Loaded:
    config = source.config
    if source.folder is not None:
        with _fetched(source.store, source.folder) as local:
            return _from_name(config, str(local), source.folder, device)
    if config.name is not None:
        return _from_name(config, config.name, config.name, device)
    assert config.spec is not None  # ModelConfig has one of the two
    return _from_spec(source, config.spec, device)


def _from_name(config: ModelConfig, name: str, called: str, device: str) -> Loaded:
    """A pretrained model by hub id or local folder; all its files are of one commit."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    import kd.pooling  # noqa: F401 - makes its model type known

    check_there(name)
    commit = commit_of(name, config.revision)
    asked = {"revision": commit, "trust_remote_code": config.trust_remote_code}
    with explained(name, config.revision):
        architecture = AutoConfig.from_pretrained(name, **asked)
        family = family_of(called, architecture)
        loader = loader_of(family)
        check_tokenizer_files(name)
        tokenizer = AutoTokenizer.from_pretrained(name, **asked)
        if not config.allow_pickle:
            check_not_pickled(name, commit)
        if device == "meta":
            with torch.device("meta"):
                model = loader.from_config(architecture, trust_remote_code=config.trust_remote_code)
            return Loaded(model.to(_dtype(config)), tokenizer, f"{called}@{commit}", family)
        model, report = loader.from_pretrained(
            name,
            dtype=_dtype(config),
            use_safetensors=None if config.allow_pickle else True,
            device_map="auto" if device == "spread" else None,
            output_loading_info=True,
            **asked,
        )
    if report["missing_keys"]:
        raise InputError(f"{called}: its files hold no weights for {sorted(report['missing_keys'])[:3]}; expected all of them")
    return Loaded(model, tokenizer, f"{called}@{content_of(name, commit)}", family)


def _from_spec(source: ModelSource, spec: Spec, device: str) -> Loaded:
    """A new model; its tokenizer was trained for it, or is that of the encoder it starts from."""
    from transformers import AutoTokenizer

    config = source.config
    if isinstance(spec, T5Spec):
        if source.tokenizer_folder is None:
            raise ConfigError("a model from a t5 spec needs a tokenizer: train one on the corpus and give its folder")
        with _fetched(source.store, source.tokenizer_folder) as local:
            tokenizer, start = AutoTokenizer.from_pretrained(str(local), trust_remote_code=False), content_of(str(local), "")
        with _weightless(device == "meta"):
            model = spec.build(tokenizer)
    else:
        check_there(spec.origin)
        commit = commit_of(spec.origin, config.revision)
        asked = {"revision": commit, "trust_remote_code": config.trust_remote_code}
        with explained(spec.origin, config.revision):
            tokenizer = AutoTokenizer.from_pretrained(spec.origin, **asked)
            model = spec.build(tokenizer, asked | {"use_safetensors": None if config.allow_pickle else True})
        start = content_of(spec.origin, commit)
    called = f"spec:{digest(spec.model_dump(), start)}@seed{source.seed}"
    family: FamilyName = "encoder_classifier" if isinstance(spec, PooledClassifierSpec) else "encoder_decoder"
    return Loaded(model.to(_dtype(config)), tokenizer, called, family)


@contextmanager
def _weightless(meta: bool) -> Iterator[None]:
    """New tensors take no memory inside, if so asked."""
    import torch

    with torch.device("meta") if meta else nullcontext():
        yield


def _dtype(config: ModelConfig) -> Any:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def check_device(device: str) -> None:
    """Raise ConfigError where a GPU is asked for and this process sees none."""
    import torch

    if device in ("cuda", "spread") and not torch.cuda.is_available():
        raise ConfigError(
            f"cluster.device = cuda, and the process on {socket.gethostname()} sees no GPU; expected one."
            " Check the node's driver and that torch is a CUDA build, or set cluster.device = cpu"
        )


def gpus_here() -> int:
    """How many GPUs this process sees."""
    import torch

    return torch.cuda.device_count()


def device_name(device: str) -> str:
    """The name of the CPU for "cpu", else of the GPUs that this process sees; several are parted by commas."""
    if device == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    import torch

    return ", ".join(sorted({torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}))


@contextmanager
def _fetched(store: Store | None, folder: str) -> Iterator[Path]:
    """A folder of the run directory as plain files, for as long as it is read."""
    if store is None:
        raise ConfigError(f"the model folder {folder!r} is one of a run directory, and none was given")
    with tempfile.TemporaryDirectory() as cache:
        local = store.local_folder(folder, Path(cache))
        if not local.is_dir():
            raise InputError(f"{store.path(folder)} is not there; run the stage that writes it")
        yield local


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch draws from `seed` inside, and goes on outside as if nothing had been drawn."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def set_threads(count: int) -> Iterator[None]:
    """So many torch threads inside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and nothing below an error from the model libraries."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
