"""What some architectures make of the LM head's products before the softmax: bias, scale, soft cap."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """`z = scale * (hidden @ weight.T + bias)`, and with a soft cap c then `c * tanh(z / c)`.

    The results are the model's logits: temperatures divide them, and log-probabilities, entropies and the squared
    gradient (`grad_square`) are those of them. Gradients of hidden states, weight and bias go through all of it.
    """

    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None

    @property
    def linear(self) -> bool:
        """True if nothing follows the products and the bias."""
        return self.scale == 1 and self.softcap is None

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """The model's logits, under plain autograd and in the products' type.

        Args:
            hidden: [...,H].
            weight: [V,H].

        Returns:
            [...,V].
        """
        return self.after(F.linear(hidden, weight, self.bias))

    def after(self, products: Tensor) -> Tensor:
        """Logits from products with the bias added."""
        if self.softcap is not None:
            return torch.tanh(products * (self.scale / self.softcap)) * self.softcap
        return products if self.scale == 1 else products * self.scale

    def after_(self, products: Tensor) -> Tensor:
        """As `after`, in place and without a gradient."""
        if self.softcap is not None:
            return products.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        return products if self.scale == 1 else products.mul_(self.scale)

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of logits by their products, at these logits; it may be multiplied into a tile."""
        if self.softcap is None:
            return self.scale
        return (logits / self.softcap).square_().neg_().add_(1).mul_(self.scale)


PLAIN = LogitTransform()
"""The products are the logits."""
