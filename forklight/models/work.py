"""The cost of passes over a policy, counted where they run."""

from dataclasses import astuple, dataclass

from transformers import PretrainedConfig, PreTrainedModel

from forklight.models.architecture import text_body, text_settings


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of some passes; they add up."""

    passes: int = 0
    sequences: int = 0
    tokens: int = 0
    """Tokens of the sequences, each with its own prompt and without padding."""
    padded_tokens: int = 0
    """Tokens of the same sequences in one padded batch per pass."""
    row_tokens: int = 0
    """Tokens that went through the layers."""
    pairs: int = 0
    """Queries times keys in attention, half of a square if it is causal."""
    head_products: int = 0
    """Products of a row with the head's weight, forward and backward."""

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Work") -> "Work":
        return Work(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Shape:
    """Multiply-adds of a model, without norms and activations."""

    per_token: int
    """Per token, in all layers: the number of their parameters."""
    per_pair: int
    """Per query and key, in all layers."""
    per_head_product: int
    """V * H."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Shape":
        """The shape of a model; embeddings are looked up and cost nothing, mixtures of experts count in full."""
        config = text_settings(model.config)
        embeddings = model.get_input_embeddings().weight
        head = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        outside = {id(embeddings), id(head)}
        inside = text_body(model).parameters()
        layers = sum(weight.numel() for weight in inside if id(weight) not in outside and weight.ndim > 1)
        per_layer = getattr(config, "per_layer_config", None)
        kinds = list(per_layer.values() if isinstance(per_layer, dict) else per_layer) if per_layer else []
        widths = [_attention_width(kind) for kind in kinds or [config] * config.num_hidden_layers]
        return cls(layers, 2 * sum(widths), head.numel())

    def flops(self, work: Work, *, backward: bool) -> tuple[float, float]:
        """Floating-point operations of the layers and of the head; a backward pass costs the layers two forwards."""
        layers = 2 * (self.per_token * work.row_tokens + self.per_pair * work.pairs)
        return float(layers * (3 if backward else 1)), float(2 * self.per_head_product * work.head_products)

    @property
    def pair_cost(self) -> float:
        """The cost of a query and a key, in units of one token."""
        return self.per_pair / self.per_token


def _attention_width(config: PretrainedConfig) -> int:
    """Heads times the width of one."""
    heads: int = config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * width
