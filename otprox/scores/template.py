"""A torch module as a function of its parameters, all of them in one vector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import functional_call


@dataclass(frozen=True, eq=False)
class Template:
    """z ↦ module(z) with the module's shape and buffers and other parameters; the module itself is never written."""

    module: torch.nn.Module
    like: Tensor

    @cached_property
    def parameters(self) -> Tensor:
        """The module's own parameters, (p,), in the dtype and on the device of `like`."""
        own = [p.detach().to(self.like).reshape(-1) for p in self.module.parameters()]
        if not own:
            raise ValueError(f"the network has no parameters to train: {self.module}")
        return torch.cat(own)

    def __call__(self, parameters: Tensor, z: Tensor) -> Tensor:
        """The network at points z (m, d): (m, d)."""
        shapes = {name: p.shape for name, p in self.module.named_parameters()}
        parts = parameters.split([shape.numel() for shape in shapes.values()])
        tensors = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        out = functional_call(self.module, tensors | self._buffers(), (z,))
        if not isinstance(out, Tensor) or out.shape != z.shape:
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the network must map points (n, d) to vectors (n, d): {tuple(z.shape)} gave {given}")
        return out

    def each(self, parameters: Tensor, z: Tensor) -> Tensor:
        """A network for each batch item: parameters (*batch, p), points (*batch, m, d)."""
        if parameters.ndim == 1:
            return self(parameters, z)
        items = zip(parameters.flatten(0, -2), z.flatten(0, -3), strict=True)
        return torch.stack([self(theta, part) for theta, part in items]).view(z.shape)

    def _buffers(self) -> dict[str, Tensor]:
        """Copies, as some modules write to theirs."""
        return {
            name: b.to(self.like) if b.is_floating_point() else b.clone() for name, b in self.module.named_buffers()
        }
