"""The network that is trained when none is given."""

from __future__ import annotations

import torch
from torch import Tensor


class Perceptron(torch.nn.Module):
    """R^d → R^d through `depth` layers of `width` tanh units; 0 before it is trained, as its last layer is.

    The other weights are drawn from N(0, 1/inputs), and the biases of the first layer from N(0, 1).
    """

    def __init__(self, dim: int, width: int = 64, depth: int = 1, *, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [dim, *[width] * depth]
        draw = [torch.randn(o, i, generator=generator) / i**0.5 for i, o in zip(sizes, sizes[1:], strict=False)]
        self.weights = torch.nn.ParameterList([*draw, torch.zeros(dim, sizes[-1])])
        biases = [torch.randn(width, generator=generator), *[torch.zeros(width)] * (depth - 1), torch.zeros(dim)]
        self.biases = torch.nn.ParameterList([b.clone() for b in biases])

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for W, b in hidden:
            x = torch.tanh(x @ W.mT + b)
        W, b = last
        return x @ W.mT + b
