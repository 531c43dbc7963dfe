"""Linears that share an input, each with a frozen weight and a LoRA adapter: one matrix product for all of them.

y = x Wᵀ + b + (x Aᵀ) Bᵀ · alpha / rank (Hu et al. 2021, equation 3). The adapters of a group are laid side by side: A
of all is one matrix, B of all one block-diagonal matrix that holds the scale too. Their copies in the activations' type
are made once a step (`Copies`); the parameters, their gradients and the optimizer stay as peft made them (float32).

On CUDA the first product of the gated layer, the widest, takes its adapters along: behind each row of x lies x Aᵀ,
behind each row of W lies B, so one product of I + R columns gives both terms and y is written once (`margin`).

Shapes: T tokens, I inputs, O outputs of all linears, R rows of A of all adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from midwatch.tuning import nf4


class Group:
    """Linears with one input. `modules` are peft's LoRA layers, or plain linears where an adapter is not wanted."""

    def __init__(self, modules: list[Any], dtype: torch.dtype, *, joined: bool = False) -> None:
        self.linears = [getattr(module, "base_layer", module) for module in modules]
        self.sizes = [linear.out_features for linear in self.linears]
        self.adapters: list[tuple[int, Tensor, Tensor, float]] = []
        """(first output, A [r, I], B [o, r], scale) of each adapter."""
        begin = 0
        for module, size in zip(modules, self.sizes, strict=True):
            if hasattr(module, "lora_A"):
                name = module.active_adapters[0]
                a, b = module.lora_A[name].weight, module.lora_B[name].weight
                self.adapters.append((begin, a, b, float(module.scaling[name])))
            begin += size
        self.outputs, self.inputs = begin, self.linears[0].in_features
        rank = sum(a.shape[0] for _, a, _, _ in self.adapters)
        device = self.linears[0].weight.device
        self.a_RI = torch.zeros(rank, self.inputs, dtype=dtype, device=device)
        self.b_OR = torch.zeros(self.outputs, rank, dtype=dtype, device=device)
        aligned = rank % 8 == 0 and dtype == torch.bfloat16
        self.margin = rank if joined and aligned and all(nf4.has_kernel(linear) for linear in self.linears) else 0
        """Columns behind each row of inputs and weights, where the adapters are taken along."""

    def parameters(self) -> list[Tensor]:
        """A and B of each adapter, in the order of `backward`'s gradients."""
        return [weight for _, a, b, _ in self.adapters for weight in (a, b)]

    def blocks(self) -> list[tuple[slice, slice]]:
        """Rows of A and rows of B of each adapter."""
        found, at = [], 0
        for begin, a, b, _ in self.adapters:
            found.append((slice(at, at + a.shape[0]), slice(begin, begin + b.shape[0])))
            at += a.shape[0]
        return found

    def copies(self) -> list[tuple[Tensor, Tensor, float]]:
        """(where a copy of a parameter lies, the parameter, its scale), for `Copies`."""
        pairs: list[tuple[Tensor, Tensor, float]] = []
        for (_, a, b, scale), (rows, outputs) in zip(self.adapters, self.blocks(), strict=True):
            pairs += [(self.a_RI[rows], a, 1.0), (self.b_OR[outputs, rows], b, scale)]
        return pairs

    def weights(self, like: Tensor) -> list[Tensor]:
        """The frozen weights in the type of `like`, as pieces of rows that follow each other."""
        pieces = nf4.widened(self.linears, like, self.margin)
        if self.margin:
            _with_margin(pieces[0], self.margin)[:, self.inputs :] = self.b_OR
        return pieces

    def forward(self, x_TI: Tensor, weights: list[Tensor], add_TO: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All outputs [T, O], plus `add_TO`; and x Aᵀ [T, R], which `backward` needs.

        With a margin, the rows of `x_TI` must have one too.
        """
        if self.margin and add_TO is None:
            x_and_xa = _with_margin(x_TI, self.margin)
            torch.mm(x_TI, self.a_RI.T, out=x_and_xa[:, self.inputs :])
            y_TO = x_and_xa @ _with_margin(weights[0], self.margin).T
            return self._biased(y_TO), x_and_xa[:, self.inputs :].contiguous()
        xa_TR = x_TI @ self.a_RI.T
        if not self.adapters:
            y_TO = x_TI.new_zeros(x_TI.shape[0], self.outputs) if add_TO is None else add_TO.clone()
        elif add_TO is None:
            y_TO = xa_TR @ self.b_OR.T
        else:
            y_TO = torch.addmm(add_TO, xa_TR, self.b_OR.T)
        for piece_TO, weight in zip(torch.split(y_TO, [len(w) for w in weights], dim=1), weights, strict=True):
            piece_TO.addmm_(x_TI, weight.T)
        return self._biased(y_TO), xa_TR

    def _biased(self, y_TO: Tensor) -> Tensor:
        for piece_TO, linear in zip(torch.split(y_TO, self.sizes, dim=1), self.linears, strict=True):
            if linear.bias is not None:
                piece_TO.add_(linear.bias)
        return y_TO

    def backward(
        self, grad_TO: Tensor, x_TI: Tensor, xa_TR: Tensor, weights: list[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients in x, and in A and B of each adapter."""
        grad_xa_TR = grad_TO @ self.b_OR
        grad_x_TI = grad_xa_TR @ self.a_RI
        for piece_TO, weight in zip(torch.split(grad_TO, [len(w) for w in weights], dim=1), weights, strict=True):
            grad_x_TI.addmm_(piece_TO, weight)
        return grad_x_TI, self.adapter_gradients(grad_TO, grad_xa_TR, x_TI, xa_TR)

    def adapter_gradients(
        self, grad_TO: Tensor, grad_xa_TR: Tensor, x_TI: Tensor, xa_TR: Tensor
    ) -> list[Tensor | None]:
        """Gradients in A and B of each adapter, in the parameters' type."""
        if not self.adapters:
            return []
        kind = self.adapters[0][1].dtype
        grad_a_RI = _product(grad_xa_TR.T, x_TI, kind)
        grad_b_OR = _product(grad_TO.T, xa_TR, kind)
        found: list[Tensor | None] = []
        for (_, _, _, scale), (rows, outputs) in zip(self.adapters, self.blocks(), strict=True):
            found += [grad_a_RI[rows], grad_b_OR[outputs, rows] * scale]
        return found


def _with_margin(rows: Tensor, margin: int) -> Tensor:
    """[n, columns] that were allocated as [n, columns + margin], whole."""
    columns = rows.shape[1] + margin
    assert rows.stride(0) == columns and rows.storage_offset() == 0
    return rows.as_strided((rows.shape[0], columns), (columns, 1))


def _product(left: Tensor, right: Tensor, kind: torch.dtype) -> Tensor:
    """left @ right, rounded once, to `kind`."""
    if left.is_cuda and kind == torch.float32 and left.dtype != kind:
        return torch.mm(left, right, out_dtype=kind)
    return (left @ right).to(kind)


class Copies:
    """All adapters' parameters of a model, and their copies in the groups' matrices."""

    def __init__(self, groups: list[Group]) -> None:
        pairs = [pair for group in groups for pair in group.copies()]
        self._to = [to for to, _, _ in pairs]
        self._parameters = [weight for _, weight, _ in pairs]
        self._scaled = [(to, scale) for to, _, scale in pairs if scale != 1.0]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the parameters. Call after they have changed."""
        torch._foreach_copy_(self._to, self._parameters)
        if self._scaled:
            torch._foreach_mul_([to for to, _ in self._scaled], [scale for _, scale in self._scaled])
