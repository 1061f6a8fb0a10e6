"""What forklight has to know of an architecture: its text model, what its head does to logits, where it is random."""

import inspect
from math import prod
from typing import cast

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from forklight.algo.logprobs.transform import LogitTransform

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_RANDOM = ("drop", "jitter")
"""Parts of the names of keys that make a model's forward pass random in training."""
_OTHER_HEADS = ("classifier", "summary", "cls")
"""Keys of heads that a causal LM does not have begin like this."""


def text_settings(settings: PretrainedConfig) -> PretrainedConfig:
    """The part of a config that is about the text model: all of it, unless the model also sees or hears."""
    return settings.get_text_config(decoder=True)


def text_body(model: PreTrainedModel) -> nn.Module:
    """The text model without its head."""
    found: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return cast(nn.Module, model.model) if found is model else found  # some name their body otherwise than they say


def logit_transform(model: PreTrainedModel) -> LogitTransform:
    """What the model makes of its head's products, the bias left out, by the keys that its code reads.

    That this is all is checked by `forward_check`.
    """
    settings, source = text_settings(model.config), _source(model)
    found = {
        name: float(getattr(settings, name))
        for name in (*_FACTORS, *_DIVISORS, *_SOFTCAPS)
        if f".{name}" in source and getattr(settings, name, None) is not None
    }
    scale = prod(found.get(name, 1.0) for name in _FACTORS) / prod(found.get(name, 1.0) for name in _DIVISORS)
    return LogitTransform(None, scale, next((found[name] for name in _SOFTCAPS if name in found), None))


def head_bias(model: PreTrainedModel) -> Tensor | None:
    """The LM head's bias, `[V]`."""
    bias: Tensor | None = getattr(model.get_output_embeddings(), "bias", None)  # type: ignore[no-untyped-call]
    return bias


def randomness(settings: PretrainedConfig) -> dict[str, float]:
    """The keys of the text model by which its forward pass is random in training, with their values above 0."""
    return {
        name: value
        for name, value in vars(text_settings(settings)).items()
        if isinstance(value, float) and value > 0 and any(part in name for part in _RANDOM)
    }


def read_by(model: PreTrainedModel, names: dict[str, float]) -> dict[str, float]:
    """Those of the keys that the model's code reads for the causal LM; other heads and mere leftovers are not among."""
    source = _source(model)
    return {
        name: value for name, value in names.items() if not name.startswith(_OTHER_HEADS) and f"config.{name}" in source
    }


def _source(model: PreTrainedModel) -> str:
    """The source of the file that defines the model's class."""
    return inspect.getsource(inspect.getmodule(type(model)) or type(model))


def without_randomness(settings: PretrainedConfig) -> None:
    """Sets these keys to 0."""
    for name in randomness(settings):
        setattr(text_settings(settings), name, 0.0)


def refuse(settings: PretrainedConfig, path: str) -> None:
    """Refuses what cannot be trained at all.

    Args:
        settings: of the folder.
        path: as the config gives it, for the message.

    Raises:
        ValueError: the model is an encoder-decoder, has no attention, or has quantised weights.
    """
    kind = settings.model_type
    if getattr(settings, "is_encoder_decoder", False):
        raise ValueError(f"model.policy.path = {path!r} is an encoder-decoder ({kind}): only decoders are trained")
    quantised = getattr(settings, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise ValueError(
            f"model.policy.path = {path!r} has quantised weights (quantization_config: {method}): they have no "
            "gradient; give a folder with the weights in bfloat16 or float32"
        )
    if getattr(text_settings(settings), "num_attention_heads", None) is None:
        raise ValueError(
            f"model.policy.path = {path!r} is a model without attention ({kind}): pure state-space models are not "
            "supported"
        )
