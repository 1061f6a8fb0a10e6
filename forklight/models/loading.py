"""Which model to train and how to load it; models for which the head or the ratio would be wrong are refused."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from forklight.models.architecture import randomness, read_by, refuse, text_body, text_settings, without_randomness
from forklight.models.folders import check_folder, check_weights, reading
from forklight.models.heads import HeadName

log = logging.getLogger(__name__)

TINY = Path(__file__).parent / "tiny"
"""Folder of the base policy that ships with the package; written `tiny` in configs."""


@dataclass(frozen=True)
class PolicyConfig:
    """Which model to load, and how."""

    path: str = "tiny"
    """A folder in transformers' format, a name on the model hub, or `tiny`: the base policy that ships."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the weights. Keep float32 with `trainer.precision: bf16-mixed`."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation. A model without `sdpa` falls back to `eager`, and it is said."""
    packing: bool = True
    """Train on rows without padding, in which the prompt of a group occurs once. It needs `attention: sdpa` and a model
    whose layers all have full attention; others get padded batches of sequences of similar length."""
    head: HeadName = "selected"
    """How the LM head is computed in training: `selected`, only for the tokens that the loss reads, in tiles;
    `gathered`, those tokens under plain autograd; `full`, all answer tokens. All give the same numbers."""
    gradient_checkpointing: bool = False
    """Recompute the layers in the backward pass: less memory, a third more work."""
    random_init: bool = False
    """Take only the architecture from `path`, with random weights seeded by `seed_everything`, for a cold start."""
    trust_remote_code: bool = False
    """Run the code that the folder brings along, for models that transformers does not know."""

    @property
    def folder(self) -> str:
        """The path with `tiny` resolved."""
        return str(TINY) if self.path == "tiny" else self.path


def load_settings(config: PolicyConfig) -> PretrainedConfig:
    """Reads the architecture, without weights, and refuses what cannot be trained.

    Returns:
        The settings, with every dropout at 0: under dropout the ratio would be noise.

    Raises:
        FileNotFoundError: `policy.path` names a folder that does not exist.
        OSError: it names a model of the hub that cannot be loaded.
        ValueError: the folder holds an adapter or quantised weights, or the model is none that can be trained; see
            `forklight.models.architecture.refuse`.
    """
    settings = _read_settings(config)
    without_randomness(settings)
    return settings


def _read_settings(config: PolicyConfig) -> PretrainedConfig:
    check_folder(config.path, Path(config.folder))
    with reading(config.path, "the config"):
        settings: PretrainedConfig = AutoConfig.from_pretrained(
            config.folder, trust_remote_code=config.trust_remote_code
        )
    refuse(settings, config.path)
    return settings


def load_model(config: PolicyConfig) -> PreTrainedModel:
    """Loads the model without its generation settings, so that no sampling default of a model card takes effect.

    Of a model that also sees or hears, the text model is trained; the rest is loaded and stays as it is.

    Raises:
        OSError: the weights are not there, or damaged.
        ValueError: as `load_settings`; the attention is not installed, or the folder lacks weights of the model.
    """
    settings = _read_settings(config)
    dropout = randomness(settings)
    without_randomness(settings)
    if not config.random_init:
        check_weights(config.path, Path(config.folder))
    model = _with_attention(config, settings)
    if used := read_by(model, dropout):
        named = ", ".join(f"{name} {value:g}" for name, value in used.items())
        say_once(f"model.policy: {config.path} has dropout ({named}): set to 0, as the ratio would be noise")
    _freeze_other_parts(config, model)
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    if config.dtype == "float64":
        _norms_in_float64(model)
        model.set_experts_implementation("eager")  # others have no kernel for float64
    return model


@cache
def say_once(message: str) -> None:
    """Warns, once in this process: the reference is loaded by the same functions as the policy."""
    log.warning(message)


def _with_attention(config: PolicyConfig, settings: PretrainedConfig) -> PreTrainedModel:
    """The model with the attention that was asked for, or with `eager` if it has no `sdpa`."""
    try:
        return _from_settings(config, settings, config.attention)
    except ImportError as error:
        if config.attention != "flash_attention_2":
            raise ValueError(f"model.policy.path = {config.path!r}: {error}") from error
        raise ValueError(
            "model.policy.attention = flash_attention_2 needs the package flash-attn and a GPU, one of which is "
            "missing here; sdpa is the default"
        ) from error
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error) or config.attention != "sdpa":
            raise
        say_once(
            f"model.policy.attention: {config.path} ({settings.model_type}) has no sdpa, eager is used: slower, and "
            "with more memory for long answers"
        )
        return _from_settings(config, settings, "eager")


def _from_settings(config: PolicyConfig, settings: PretrainedConfig, attention: str) -> PreTrainedModel:
    """Builds the model; random, or with the folder's weights, of which none may be missing."""
    auto = _auto_class(config, settings)
    keywords: dict[str, Any] = {
        "dtype": getattr(torch, config.dtype),
        "attn_implementation": attention,
        "trust_remote_code": config.trust_remote_code,
    }
    if config.random_init:
        model: PreTrainedModel = auto.from_config(settings, **keywords)
        return model
    try:
        model, found = auto.from_pretrained(
            config.folder, config=settings, use_safetensors=True, output_loading_info=True, **keywords
        )
    except (ImportError, ValueError):
        raise
    except Exception as error:  # of many kinds: shapes, formats, files
        with reading(config.path, "the weights"):
            raise error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"model.policy.path = {config.path!r}: {len(missing)} weights of {type(model).__name__} are not in the "
            f"folder and would be random: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return model


def _auto_class(config: PolicyConfig, settings: PretrainedConfig) -> Any:
    """The class of transformers that loads such a model with a head for next tokens."""
    if type(settings) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in getattr(settings, "auto_map", {}):
        return AutoModelForCausalLM
    if type(settings) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ValueError(f"model.policy.path = {config.path!r} ({settings.model_type}) is no causal language model")


def _freeze_other_parts(config: PolicyConfig, model: PreTrainedModel) -> None:
    """Switches off gradients outside of the text model and its head."""
    if text_settings(model.config) is model.config:
        return
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    trained = {id(weight) for part in (text_body(model), head) for weight in part.parameters()}
    others = [weight for weight in model.parameters() if id(weight) not in trained]
    for weight in others:
        weight.requires_grad_(False)
    if others:
        count = sum(weight.numel() for weight in others)
        say_once(f"model.policy: of {config.path} the text model is trained; {count:,} other weights stay as they are")


def _norms_in_float64(model: PreTrainedModel) -> None:
    """RMS norms of models round to float32, so that a prompt computed once or several times gives other gradients."""
    for module in model.modules():
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and isinstance(eps, float):
            module.forward = partial(_rms_norm, module)


def _rms_norm(module: torch.nn.Module, hidden: Tensor) -> Tensor:
    weight, eps = module.weight, module.variance_epsilon
    assert isinstance(weight, Tensor) and isinstance(eps, float)
    return F.rms_norm(hidden, weight.shape, weight, eps)


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of the model.

    Raises:
        OSError: the folder has none.
        ValueError: it has no EOS token, so no answer could ever end.
    """
    check_folder(config.path, Path(config.folder))
    with reading(config.path, "the tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            config.folder, trust_remote_code=config.trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.policy: the tokenizer of {config.path} has no EOS token, so no answer could ever end")
    return tokenizer


def eos_ids(config: PolicyConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end an answer: the tokenizer's, the model's and its generation settings' EOS."""
    ids = {tokenizer.eos_token_id}
    read = load_settings(config)
    settings = [getattr(part, "eos_token_id", None) for part in (read, text_settings(read))]
    with suppress(OSError):  # a model need not have generation settings
        settings.append(GenerationConfig.from_pretrained(config.folder).eos_token_id)
    for value in settings:
        ids |= set(value) if isinstance(value, list) else {value}
    return tuple(sorted(ids - {None}))
