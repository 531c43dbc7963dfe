from __future__ import annotations

import pytest
import torch

from midwatch.engine.attention import attention_mask, fused_attention, self_attention
from midwatch.engine.norm import RMSNorm
from midwatch.engine.rope import rotate_, rotation_table


@pytest.mark.parametrize(
    ("num_tokens", "length"),
    [
        (1, 1),
        (1, 9),
        (2, 2),
        (2, 9),
        (7, 7),
        (31, 40),
        (32, 32),
        (33, 33),
        (33, 40),
        (40, 90),
    ],
)
@pytest.mark.parametrize("num_kv_heads", [1, 3, 9])
def test_the_fused_path_computes_the_reference_formula(num_tokens: int, length: int, num_kv_heads: int) -> None:
    random = torch.Generator().manual_seed(num_tokens * 100 + length)
    q = torch.randn(num_tokens, 9, 16, generator=random)
    k = torch.randn(num_kv_heads, length, 16, generator=random)
    v = torch.randn(num_kv_heads, length, 16, generator=random)
    for window in (0, 1, 5, length):
        # A lone token is never masked: keys before its window are left out, as `lay_out` does.
        first = max(0, length - window) if window and num_tokens == 1 else 0
        mask = attention_mask(num_tokens, length - first, 9 // num_kv_heads, window)
        grouped = q.unflatten(1, (num_kv_heads, -1))
        fused = fused_attention(grouped, k[None, :, first:], v[None, :, first:], mask, scale=0.3).flatten(1, 2)
        torch.testing.assert_close(fused, self_attention(q, k, v, scale=0.3, window=window), rtol=1e-5, atol=1e-5)


def test_a_token_does_not_see_the_future() -> None:
    q, k, v = torch.randn(5, 4, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    before = self_attention(q, k, v, scale=0.5)
    k[:, 3:] = 99.0
    v[:, 3:] = -99.0
    torch.testing.assert_close(self_attention(q, k, v, scale=0.5)[:3], before[:3])


def test_a_rotation_is_cos_and_sin_of_position_times_frequency() -> None:
    table = rotation_table(12, 8, 10_000.0)
    x = torch.randn(1, 2, 8)
    turned = x.clone()
    rotate_(turned, table[[11]])
    for pair in range(4):
        angle = torch.tensor(11 * 10_000.0 ** (-2 * pair / 8))
        first, second = x[..., pair], x[..., pair + 4]
        torch.testing.assert_close(turned[..., pair], first * angle.cos() - second * angle.sin())
        torch.testing.assert_close(turned[..., pair + 4], first * angle.sin() + second * angle.cos())


def test_the_score_of_rotated_vectors_depends_on_their_distance_alone() -> None:
    table = rotation_table(64, 16, 10_000.0)
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def score(q_at: int, k_at: int) -> torch.Tensor:
        q_turned, k_turned = q.clone(), k.clone()
        rotate_(q_turned, table[[q_at]])
        rotate_(k_turned, table[[k_at]])
        return (q_turned * k_turned).sum()

    torch.testing.assert_close(score(7, 3), score(60, 56), rtol=1e-4, atol=1e-4)


def test_a_norm_divides_by_the_root_of_the_mean_square() -> None:
    x, weight = torch.randn(3, 64), torch.randn(64)
    expected = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight
    torch.testing.assert_close(RMSNorm(weight, 1e-5)(x), expected)
