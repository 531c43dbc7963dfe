"""The two kernels that draw by temperature alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; these kernels are its")

from cuda_models import DEVICE

from midwatch.engine.cuda.drawing import draw

# The interpreter's own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
VOCABULARY = 9000  # three parts, the last one not full


def inverted(logits_V: torch.Tensor, temperature: float, uniform: float) -> int:
    weights = torch.softmax(logits_V.double().cpu() / temperature, -1)
    return int((weights.cumsum(-1) <= uniform * weights.sum()).sum())


def drawn(logits_RV: torch.Tensor, temperatures: list[float], uniforms: list[float]) -> list[int]:
    numbers = torch.tensor(temperatures, dtype=torch.float32, device=DEVICE)
    return draw(logits_RV, numbers, torch.tensor(uniforms, dtype=torch.float64, device=DEVICE)).tolist()


def test_a_uniform_number_picks_what_the_distribution_function_says() -> None:
    rng = np.random.default_rng(0)
    logits = torch.randn(12, VOCABULARY, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 3
    temperatures = [0.3, 0.6, 1.0, 2.5] * 3
    uniforms = [0.0, 0.999999, *rng.random(10).tolist()]
    cases = zip(logits, temperatures, uniforms, strict=True)
    expected = [inverted(row, temperature, uniform) for row, temperature, uniform in cases]
    assert drawn(logits, temperatures, uniforms) == expected


def test_temperature_0_takes_the_first_of_the_greatest() -> None:
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    logits[0, [4500, 8999]] = 9.0
    logits[1, [3, 4095, 4096]] = 9.0
    assert drawn(logits, [0.0, 0.0], [0.7, 0.7]) == [4500, 3]


def test_what_has_no_weight_is_never_drawn() -> None:
    logits = torch.full((3, VOCABULARY), -float("inf"), device=DEVICE)
    logits[:, 5000] = 0.0
    assert drawn(logits, [1.0, 1.0, 0.0], [0.0, 1.0 - 2.0**-53, 0.5]) == [5000, 5000, 5000]


def test_a_row_of_no_numbers_says_so_and_its_neighbours_do_not_notice() -> None:
    logits = torch.zeros(4, VOCABULARY, device=DEVICE)
    logits[0, 17] = float("nan")
    logits[1] = -float("inf")
    logits[2, 17] = float("inf")
    ids = drawn(logits, [0.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5])
    assert ids[:3] == [-1, -1, -1]
    assert ids[3] == VOCABULARY // 2
