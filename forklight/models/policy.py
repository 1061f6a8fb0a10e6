"""The language model that is trained: a causal LM of transformers whose head is ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from forklight.algo.logprobs import token_stats
from forklight.algo.types import Chunk, LossOutput, TokenStats

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
    gradient_checkpointing: bool = False
    """Recompute the layers in the backward pass: less memory, a third more work."""
    random_init: bool = False
    """Take only the architecture from `path` and draw the weights by `seed_everything`: the start of a cold start."""

    @property
    def folder(self) -> str:
        """The path with `tiny` resolved."""
        return str(TINY) if self.path == "tiny" else self.path


class Policy(nn.Module):
    """A causal LM: its body runs on whole sequences, its head only on answer tokens.

    Args:
        config: which model to load.

    Raises:
        FileNotFoundError: `policy.path` names a folder that is not there.
        ValueError: the model drops out units, or scales its logits in a way the head does not reproduce.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.model: PreTrainedModel = load_model(config)
        # Models come in evaluation mode, in which gradient checkpointing does nothing; without dropout both are equal.
        self.model.train()
        if config.gradient_checkpointing:
            renamed = hasattr(self.model, "activation_checkpointing_enable")  # the older name warns where both are
            getattr(self.model, "activation_checkpointing_enable" if renamed else "gradient_checkpointing_enable")()

    def forward(
        self,
        chunk: Chunk,
        temperature: float,
        loss: Callable[[TokenStats], LossOutput] | None = None,
        *,
        entropy_temperature: float | None = None,
        entropy_grad: bool = False,
    ) -> TokenStats | LossOutput:
        """Body, head and, if asked for, the loss: all work on the head's weight lies in here.

        This is `head: full`: every answer row goes through the head under plain autograd.

        Args:
            chunk: the sequences, S of them; none at all is fine, the result is then empty but connected.
            temperature: the sampling temperature T; log-probabilities are those of logits / T.
            loss: what to make of the statistics; without it they are returned.
            entropy_temperature: of the entropies; T if None.
            entropy_grad: whether the entropies are differentiable.

        Returns:
            `TokenStats` of the chunk's N answer tokens, or what `loss` returns.
        """
        stats = token_stats(
            self._answer_hidden(chunk),
            self.head_weight,
            chunk.answer_ids,
            temperature,
            entropy_temperature,
            entropy_grad=entropy_grad,
        )
        return stats if loss is None else loss(stats)

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        body: nn.Module = self.model.base_model
        return body

    @property
    def head_weight(self) -> Tensor:
        """The LM head's weight, `[V,H]`."""
        weight: Tensor = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        return weight

    def _answer_hidden(self, chunk: Chunk) -> Tensor:
        """Hidden states that predict the answer tokens, `[N,H]`. Rows are right-padded, so no mask is needed."""
        if len(chunk.rows) == 0:
            stand_in = chunk.input_ids.new_zeros(1, 1)
            return self._body(stand_in)[0, :0]
        # The last column predicts nothing, and under causal attention padding to the right is never seen.
        hidden = self._body(chunk.input_ids[:, :-1])
        row = torch.arange(len(chunk.rows), device=hidden.device)[:, None].expand_as(chunk.answer_mask)
        return hidden[row[chunk.answer_mask], chunk.answer_positions[chunk.answer_mask] - 1]

    def _body(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.body(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden


def load_settings(config: PolicyConfig) -> PretrainedConfig:
    """Reads the architecture, without weights, and refuses what the head or the ratio would get wrong.

    Raises:
        FileNotFoundError: `policy.path` names a folder that is not there.
        OSError: it names a model of the hub that cannot be had.
        ValueError: the model drops out units, or scales its logits in a way the head does not reproduce.
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
    return model


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model.

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
    """Adds the config key to what transformers says of files that are not there."""
    try:
        yield
    except OSError as error:
        raise OSError(f"model.policy.path = {config.path!r}: {error}") from error


def _check_folder(config: PolicyConfig) -> None:
    looks_local = config.path == "tiny" or config.path.startswith((".", "/", "~")) or config.path.count("/") != 1
    if looks_local and not (Path(config.folder) / "config.json").is_file():
        raise FileNotFoundError(f"model.policy.path = {config.path!r}: no folder with a config.json there")
