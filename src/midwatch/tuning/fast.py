"""The fast path of a training step, for models of the Llama family under peft: same gradients, less time and memory.

`prepare` marks a model; `packed_loss` runs a packed batch through it. Llama and Qwen2 with plain LoRA take the path by
hand (`layer.py`). Everything else (other families, dropout on adapters, DoRA, sharded parameters) takes transformers'
own layers, with attention by document and the loss over counted tokens all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy

from midwatch.tuning import attention
from midwatch.tuning.attention import Documents
from midwatch.tuning.layer import Keep, Layer, Step, run
from midwatch.tuning.loss import completion_loss, counted
from midwatch.tuning.lowrank import Copies
from midwatch.tuning.offload import Shelf

if TYPE_CHECKING:
    from peft import PeftModel

_FAMILIES = ("LlamaDecoderLayer", "Qwen2DecoderLayer")
_LINEARS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `prepare` was asked for."""

    checkpointing: bool
    spare_bytes: int


class _Path:
    """The layers by hand of one model, built when first used."""

    def __init__(self, base: Any, dtype: torch.dtype) -> None:
        self.layers = [Layer(module, base.config, dtype) for module in base.model.layers]
        self.copies = Copies([group for layer in self.layers for group in layer.groups])
        self.linears = _linears(base)
        self.state = _state(self.linears)
        self.shelf = Shelf() if base.get_input_embeddings().weight.is_cuda else None

    def stale(self) -> bool:
        """Whether the adapters are other ones than when this was built: moved, sharded, merged, switched off or on."""
        return _state(self.linears) != self.state

    def keeps(self, options: Options, tokens: int, width: int) -> list[Keep]:
        """What each layer keeps.

        With checkpointing, what surrounds the attention, in host memory where that is apart from the device's. The last
        layer keeps all: its gradient is the first, when there is room. Spare memory lets more of the last ones do so.
        """
        count = len(self.layers)
        if not options.checkpointing:
            return [Keep.ALL] * count
        whole = min(count, 1 + options.spare_bytes // (Keep.ALL.numbers(self.layers[0]) * tokens * width))
        rest = Keep.INPUT if self.shelf is None else Keep.HOST
        return [rest] * (count - whole) + [Keep.ALL] * whole


def _adapters(module: Any) -> list[Tensor]:
    return [weight for name, weight in module.named_parameters() if "lora_" in name]


def _by_hand(base: Any) -> bool:
    """Whether every layer is one that `layer.py` knows: its kind, its activation, and plain LoRA on it or nothing."""
    from torch.distributed.tensor import DTensor

    if base.config.hidden_act != "silu" or getattr(base.config, "use_sliding_window", False):
        return False
    for layer in base.model.layers:
        if type(layer).__name__ not in _FAMILIES or not _adapters(layer):
            return False
        if any(isinstance(weight, DTensor) for weight in layer.parameters()):
            return False
    return all(_is_plain(linear) for linear in _linears(base))


def _linears(base: Any) -> list[Any]:
    """All linears of all layers."""
    layers = base.model.layers
    return [
        getattr(getattr(layer, part), name) for layer in layers for part, names in _LINEARS.items() for name in names
    ]


def _state(linears: list[Any]) -> list[Any]:
    """What must not have changed since the path was built: which adapters are active, and the first's parameters."""
    found: list[Any] = [
        (linear.disable_adapters, linear.merged, linear.active_adapters, linear.training)
        for linear in linears
        if hasattr(linear, "lora_A")
    ]
    with_adapter = next((linear for linear in linears if hasattr(linear, "lora_A")), None)
    if with_adapter is not None:
        weights = [module.weight for module in with_adapter.lora_A.values()]
        found += [(id(weight), weight.device) for weight in weights]
    return found


def _is_plain(linear: Any) -> bool:
    """A linear without an adapter, or with exactly one that is active, undropped and of the common kind."""
    if not hasattr(linear, "lora_A"):
        return True
    active = linear.active_adapters
    if len(active) != 1 or active[0] not in linear.lora_A or linear.merged or linear.disable_adapters:
        return False
    name = active[0]
    dropped = linear.training and not isinstance(linear.lora_dropout[name], torch.nn.Identity)
    return not dropped and name not in linear.lora_variant and linear.lora_B[name].bias is None


def prepare(model: PeftModel, *, checkpointing: bool, spare_bytes: int = 0) -> None:
    """Set `model` up in place for `packed_loss`; generation and `save_pretrained` go on as before.

    `checkpointing` makes most of a layer again on the way back: on a CPU all but its input; on CUDA the gated layer's
    first products, with the rest in host memory meanwhile. Up to `spare_bytes` of device memory are spent on layers
    that keep everything.
    """
    attention.register()
    base: Any = model.get_base_model()
    base.set_attn_implementation(attention.NAME)
    base.config.use_cache = False
    if checkpointing:  # for the layers of transformers, where they run
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    base.midwatch_options = Options(checkpointing=checkpointing, spare_bytes=spare_bytes)


def _path(base: Any) -> _Path | None:
    """The layers by hand, if the model is one for them."""
    path: _Path | None = base.__dict__.get("midwatch_path")
    if path is None or path.stale():
        path = _Path(base, base.get_input_embeddings().weight.dtype) if _by_hand(base) else None
        base.__dict__["midwatch_path"] = path
    return path


def _hidden_by_hand(base: Any, path: _Path, batch: dict[str, Tensor], documents: Documents) -> Tensor:
    """Hidden states [T, E] before the last norm."""
    path.copies.refresh()
    hidden: Tensor = base.get_input_embeddings()(batch["input_ids"].reshape(-1))
    cos, sin = base.model.rotary_emb(hidden[None], position_ids=batch["position_ids"].reshape(1, -1))
    if path.shelf is not None:
        path.shelf.begin()
    step = Step(documents=documents, cos_TD=cos[0].contiguous(), sin_TD=sin[0].contiguous(), shelf=path.shelf)
    keeps = path.keeps(base.midwatch_options, hidden.shape[0], hidden.element_size())
    for layer, keep in zip(path.layers, keeps, strict=True):
        hidden = run(layer, hidden, step, keep)
    if path.shelf is not None:
        path.shelf.fetch_last()
    return hidden


def packed_loss(model: Any, batch: dict[str, Tensor], num_items: Tensor | int | None = None) -> Tensor:
    """Mean negative log-likelihood of the counted tokens of a packed batch.

    `batch`: `input_ids`, `labels`, `position_ids`, each [R, L] int64. Labels are unshifted, -100 where not counted;
    positions restart at 0 where a document begins. `num_items`, if given, divides the sum instead of the batch's own
    count: the counted tokens of all batches of one optimizer step.
    """
    documents = Documents.of(batch["position_ids"])
    at, labels = counted(batch["labels"])
    divisor = labels.numel() if num_items is None else num_items
    line = {
        "input_ids": batch["input_ids"].reshape(1, -1),
        "position_ids": batch["position_ids"].reshape(1, -1),
        "attention_mask": batch["position_ids"].new_ones(1, 1, 1, 1),  # four dimensions: taken as is, so none is built
        "use_cache": False,
        "documents": documents,
    }
    if isinstance(model, FSDPModule) or not hasattr(model, "get_base_model"):
        # FSDP gathers weights, and DDP gradients, around the forward of the whole: the head must run in it.
        logits = model(**line, logits_to_keep=at).logits[0].float()
        return cross_entropy(logits, labels, reduction="sum").div(divisor)
    base: Any = model.get_base_model()
    path = _path(base)
    if path is None:
        hidden = base.model(**line).last_hidden_state[0].index_select(0, at)
    else:
        with torch.autocast(at.device.type, enabled=False):
            hidden = base.model.norm(_hidden_by_hand(base, path, batch, documents).index_select(0, at))
    return completion_loss(hidden, base.lm_head.weight, labels).div(divisor)
