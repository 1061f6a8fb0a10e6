"""Which model to train and how to load it; models for which the head or the ratio would be wrong are refused."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from forklight.models.heads import HeadName

TINY = Path(__file__).parent / "tiny"
"""Folder of the base policy that ships with the package; written `tiny` in configs."""

_UNSUPPORTED = ("final_logit_softcapping", "logits_scaling", "logit_scale", "output_multiplier_scale")


@dataclass(frozen=True)
class PolicyConfig:
    """Which model to load, and how."""

    path: str = "tiny"
    """A folder in transformers' format, a name on the model hub, or `tiny`: the base policy that ships."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the weights. Keep float32 with `trainer.precision: bf16-mixed`."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation."""
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

    @property
    def folder(self) -> str:
        """The path with `tiny` resolved."""
        return str(TINY) if self.path == "tiny" else self.path


def load_settings(config: PolicyConfig) -> PretrainedConfig:
    """Reads the architecture, without weights, and refuses what the head or the ratio would get wrong.

    Raises:
        FileNotFoundError: `policy.path` names a folder that does not exist.
        OSError: it names a model of the hub that cannot be loaded.
        ValueError: the model has dropout, or scales its logits in a way that the head does not reproduce.
    """
    _check_folder(config)
    with _named(config):
        settings: PretrainedConfig = AutoConfig.from_pretrained(config.folder)
    dropout = {name: value for name, value in vars(settings).items() if "drop" in name and isinstance(value, float)}
    if any(dropout.values()):
        raise ValueError(
            f"model.policy: {config.path} has dropout > 0 ({dropout}); the ratio would be noise. Set it to 0"
        )
    scaled = [name for name in _UNSUPPORTED if getattr(settings, name, None) not in (None, 1, 1.0)]
    if scaled:
        raise ValueError(
            f"model.policy: {config.path} changes its logits by {scaled}, which the head does not reproduce"
        )
    return settings


def load_model(config: PolicyConfig) -> PreTrainedModel:
    """Loads the model without its generation settings, so that no sampling default of a model card takes effect."""
    settings = load_settings(config)
    keywords = {"dtype": getattr(torch, config.dtype), "attn_implementation": config.attention}
    if config.random_init:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, **keywords)  # type: ignore[no-untyped-call]
    else:
        with _named(config):
            model = AutoModelForCausalLM.from_pretrained(config.folder, use_safetensors=True, **keywords)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:  # type: ignore[no-untyped-call]
        raise ValueError(f"model.policy: {config.path} has a head with a bias, which is not supported")
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    if config.dtype == "float64":
        _norms_in_float64(model)
    return model


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
        ValueError: it has no EOS token, so no answer could ever end.
    """
    _check_folder(config)
    with _named(config):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(config.folder)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.policy: the tokenizer of {config.path} has no EOS token, so no answer could ever end")
    return tokenizer


def eos_ids(config: PolicyConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end an answer: the tokenizer's, the model's and its generation settings' EOS."""
    ids = {tokenizer.eos_token_id}
    settings = [load_settings(config).eos_token_id]
    with suppress(OSError):  # a model need not have generation settings
        settings.append(GenerationConfig.from_pretrained(config.folder).eos_token_id)
    for value in settings:
        ids |= set(value) if isinstance(value, list) else {value}
    return tuple(sorted(ids - {None}))


@contextmanager
def _named(config: PolicyConfig) -> Iterator[None]:
    """Adds the config key to transformers' errors about missing files."""
    try:
        yield
    except OSError as error:
        raise OSError(f"model.policy.path = {config.path!r}: {error}") from error


def _check_folder(config: PolicyConfig) -> None:
    looks_local = config.path == "tiny" or config.path.startswith((".", "/", "~")) or config.path.count("/") != 1
    if looks_local and not (Path(config.folder) / "config.json").is_file():
        raise FileNotFoundError(f"model.policy.path = {config.path!r}: no folder with a config.json there")
