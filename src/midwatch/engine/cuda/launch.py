"""Launch a Triton kernel without paying for its argument analysis every time.

`kernel[grid](...)` works out on each call which compiled variant fits: 40 to 50 µs on a slow core, times six kernels a
layer. What a variant depends on is little: the constants, and of each argument its dtype, its alignment, or whether it
is 1 or a multiple of 16. That is the key here, and a known key goes straight to the compiled kernel.
"""

from __future__ import annotations

from typing import Any

import torch

_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def launch(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], **flags: Any) -> None:
    """`kernel[grid](*args, **flags)`; flags are the kernel's constants, in its order, and then launch options."""
    key = (id(kernel), *flags.values(), *[_trait(arg) for arg in args])
    known = _compiled.get(key)
    if known is not None:
        compiled, constants = known
        compiled[grid if len(grid) == 3 else (*grid, 1, 1)[:3]](*args, *constants)
        return
    compiled = kernel[grid](*args, **flags)
    if compiled is not None:  # None in the interpreter
        _compiled[key] = (compiled, tuple(flags[name] for name in kernel.arg_names[len(args) :]))


def cdiv(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`."""
    return -(-count // size)


def power_of_2(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()


def _trait(arg: Any) -> Any:
    """What a compiled variant depends on."""
    if isinstance(arg, torch.Tensor):
        return arg.dtype if arg.data_ptr() % 16 == 0 else (arg.dtype, False)
    if isinstance(arg, int):
        return 1 if arg == 1 else arg % 16 == 0
    return float
