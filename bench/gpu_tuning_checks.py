"""Is the fast path right on a GPU: each kernel against PyTorch, and whole gradients against float32 and plain peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from midwatch import results
from midwatch.tuning import kernels, nf4, pointwise


def _error(ours: Tensor, right: Tensor) -> float:
    """Length of the difference over the length of what is right."""
    right = right.float().cpu()
    return float((ours.float().cpu() - right).norm() / right.norm())


def kernel_errors() -> dict[str, float]:
    """Each kernel beside its twin in PyTorch, computed in float32 on a CPU from the same bfloat16 numbers."""
    import bitsandbytes

    torch.manual_seed(0)
    x, grad, add = (torch.randn(300, 4096, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    weight = 1 + torch.randn(4096, dtype=torch.bfloat16, device="cuda") / 10
    wide = [part.float().cpu() for part in (x, grad, add, weight)]
    found = {"norm": _error(pointwise.norm(x, weight, 1e-5), pointwise.norm(wide[0], wide[3], 1e-5))}
    right = pointwise.norm_backward(wide[1], wide[0], wide[3], 1e-5, wide[2])
    found["norm backward"] = _error(pointwise.norm_backward(grad, x, weight, 1e-5, add), right)
    gu, grad = x.clone(), torch.randn(300, 2048, dtype=torch.bfloat16, device="cuda")
    wide_gu, wide_grad = gu.float().cpu(), grad.float().cpu()
    found["SwiGLU"] = _error(pointwise.swiglu(gu), pointwise.swiglu(wide_gu))
    right = pointwise.swiglu_backward(wide_grad, wide_gu)
    found["SwiGLU backward"] = _error(pointwise.swiglu_backward(grad, gu), right)
    angles = torch.rand(300, 64, device="cuda").repeat(1, 2) * 6
    cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
    rows = torch.randn(300, 40, 128, dtype=torch.bfloat16, device="cuda")
    right = rows.float().cpu()
    pointwise.rope(right[:, 4:36], cos.float().cpu(), sin.float().cpu())
    pointwise.rope(rows[:, 4:36], cos, sin)
    found["rotation"] = _error(rows, right)
    linear = bitsandbytes.nn.Linear4bit(4096, 1024, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
    linear = linear.to(torch.bfloat16).cuda()
    right = bitsandbytes.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    made = torch.empty_like(right)
    nf4.dequantize(linear, made)
    found["NF4"] = _error(made, right)
    logits = torch.randn(64, 128256, dtype=torch.bfloat16, device="cuda") * 4
    labels = torch.randint(0, 128256, (64,), device="cuda")
    wide_logits = logits.float().requires_grad_()
    right = torch.nn.functional.cross_entropy(wide_logits, labels, reduction="none")
    right.sum().backward()  # type: ignore[no-untyped-call]
    found["cross entropy"] = _error(kernels.cross_entropy(logits, labels), right.detach())
    assert wide_logits.grad is not None
    found["cross entropy backward"] = _error(logits, wide_logits.grad)
    return found


def _gradients(model: Any) -> dict[str, Tensor]:
    return {name: weight.grad.float() for name, weight in model.named_parameters() if weight.grad is not None}


def gradient_errors(prepared: Any, loss_of: Any, data: dict[str, Tensor], shape: dict[str, Any]) -> dict[str, float]:
    """Loss and adapter gradients of both sides beside float32's, for what each keeps, on a small Llama in NF4."""
    from bitsandbytes.functional import dequantize_4bit

    found: dict[str, float] = {}
    exact = prepared("plain", shape, b_std=0.02)
    for module in list(exact.modules()):
        base = getattr(module, "base_layer", None)
        if base is not None:
            plain = torch.nn.Linear(base.in_features, base.out_features, bias=False, device="cuda")
            plain.weight = torch.nn.Parameter(
                dequantize_4bit(base.weight.data, base.weight.quant_state).float(), requires_grad=False
            )
            module.base_layer = plain
    torch.backends.cuda.matmul.allow_tf32 = False
    loss = exact(**data, use_cache=False).loss
    loss.backward()
    right, right_loss = _gradients(exact), loss.item()
    assert len(right) == 2 * 7 * shape["num_hidden_layers"]
    for name, side, spare in (
        ("ours", "ours", 0.0),
        ("ours, nothing made again", "ours", 50.0),
        ("plain", "plain", 0.0),
    ):
        model = prepared(side, shape, b_std=0.02, spare_gib=spare)
        loss = loss_of(side, model, data)
        loss.backward()
        made = _gradients(model)
        assert made.keys() == right.keys()
        found[f"{name}: loss"] = abs(loss.item() - right_loss) / right_loss
        found[f"{name}: gradients"] = max(_error(made[key], right[key]) for key in right)
    return found


def rows(prepared: Any, base_model: Any, loss_of: Any, batch: Any, shape: dict[str, Any]) -> list[results.Row]:
    """A row per check."""
    made = []
    for name, error in kernel_errors().items():
        limit = 1e-6 if name in {"NF4", "cross entropy"} else 6e-3
        made.append(results.row(f"kernel: {name}, error beside PyTorch in float32", [error], "of its length",
            target=limit, direction="at_most"))  # fmt: skip
    errors = gradient_errors(prepared, loss_of, batch(2, 1024, shape["vocab_size"], seed=3), shape)
    for what in ("loss", "gradients"):
        for side in ("ours", "ours, nothing made again"):
            made.append(results.row(f"{what} beside float32: {side}", [errors[f"{side}: {what}"]], "of its length",
                peer="peft and transformers", peer_samples=[errors[f"plain: {what}"]],
                target=max(1e-4, 1.5 * errors[f"plain: {what}"]), direction="at_most"))  # fmt: skip
    print(results.table(made), flush=True)
    return made
