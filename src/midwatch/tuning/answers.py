"""Who answers? One port for all: the engine that serves (wired in `cli/tune_eval.py`) and the model as trained.

A variant is the name of an adapter, or None for the base alone.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from midwatch.errors import TuningError

if TYPE_CHECKING:
    import torch

PAD = 0
"""Fills batches on the left; masked, so any id does."""
Message = dict[str, str]
Conversation = Sequence[Message]


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How unlikely a text is to a model: the sum of -ln p over its tokens, and how many there are."""

    nll: float
    tokens: int


class Answerer(Protocol):
    """A base with adapters that can be asked and can score; all answers are greedy."""

    @property
    def description(self) -> str:
        """What answers, in words for a report: weights, precision, device."""
        ...

    def answer(self, conversations: Sequence[Conversation], *, variant: str | None, max_tokens: int) -> list[str]:
        """The assistant's next turn in each conversation, at most `max_tokens` tokens long."""
        ...

    def likelihoods(
        self, conversations: Sequence[Conversation], answers: Sequence[str], *, variant: str | None
    ) -> list[Likelihood]:
        """How unlikely each text is as that turn; its own tokens count, the end of the turn does not."""
        ...


class PeftAnswerer:
    """The model as it was trained: transformers and peft over a base's folder, in NF4 or in bfloat16.

    `adapters` are folders by name. Prompts are spelled by the engine's tokenizer, as they were in training. Raises
    `TuningError` for an adapter that does not fit and `ModelError` for a base that cannot be loaded.
    """

    def __init__(self, base: Path, adapters: Mapping[str, Path], *, four_bit: bool = True, batch: int = 16) -> None:
        import torch

        from midwatch.engine.tokenizer import open_tokenizer
        from midwatch.tuning.base import load_base

        self._batch = batch
        self._four_bit = four_bit
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = open_tokenizer(base)
        self._model: Any = load_base(base, four_bit=four_bit, device=self._device)
        self._has_adapters = False
        for name, folder in adapters.items():
            self._add(name, folder)
        self._model.eval()

    @property
    def description(self) -> str:
        """What answers."""
        form = "NF4 with double quantization" if self._four_bit else "bfloat16"
        return f"transformers and peft, {form}, {self._device.type}"

    def answer(self, conversations: Sequence[Conversation], *, variant: str | None, max_tokens: int) -> list[str]:
        """Answer in batches of equal length, padded on the left."""
        import torch

        answers = [""] * len(conversations)
        ends = set(self._tokenizer.eos_ids)
        prompts = [self._tokenizer.chat_prompt(conversation) for conversation in conversations]
        for rows in _by_length(prompts, self._batch):
            ids_ST, mask_ST = self._pad([prompts[row] for row in rows])
            with self._as(variant), torch.inference_mode():
                out_ST = self._model.generate(
                    input_ids=ids_ST,
                    attention_mask=mask_ST,
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    use_cache=True,
                    eos_token_id=sorted(ends),
                    pad_token_id=PAD,
                )
            for row, ids in zip(rows, out_ST[:, ids_ST.shape[1] :].tolist(), strict=True):
                answers[row] = self._tokenizer.decode(list(itertools.takewhile(lambda item: item not in ends, ids)))
        return answers

    def likelihoods(
        self, conversations: Sequence[Conversation], answers: Sequence[str], *, variant: str | None
    ) -> list[Likelihood]:
        """One forward pass per batch; the logits of the answers' tokens alone become probabilities."""
        import torch

        prompts = [self._tokenizer.chat_prompt(conversation) for conversation in conversations]
        targets = [self._tokenizer.spell(answer) for answer in answers]
        whole = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        found = [Likelihood(nll=0.0, tokens=0)] * len(whole)
        for rows in _by_length(whole, self._batch):
            ids_ST, mask_ST = self._pad([whole[row] for row in rows])
            with self._as(variant), torch.inference_mode():
                places_ST = (mask_ST.cumsum(dim=1) - 1).clamp(min=0)
                logits_STV = self._model(input_ids=ids_ST, attention_mask=mask_ST, position_ids=places_ST).logits
            for index, row in enumerate(rows):
                count = len(targets[row])
                if count:
                    logprobs_TV = logits_STV[index, -count - 1 : -1].float().log_softmax(dim=-1)
                    chosen_T = logprobs_TV.gather(1, ids_ST[index, -count:, None])
                    found[row] = Likelihood(nll=-float(chosen_T.double().sum()), tokens=count)
        return found

    def _add(self, name: str, folder: Path) -> None:
        from peft import PeftModel

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of transformers, for peft's authors
                if self._has_adapters:
                    self._model.load_adapter(folder, adapter_name=name)
                else:
                    self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise TuningError(
                f"The adapter in {folder} does not fit this base: {_first_line(error)}",
                "Name the base that it was trained on with --base.",
            ) from None
        self._has_adapters = True

    @contextlib.contextmanager
    def _as(self, variant: str | None) -> Iterator[None]:
        """The model with one adapter, or with none."""
        if not self._has_adapters:
            yield
        elif variant is None:
            with self._model.disable_adapter():
                yield
        else:
            self._model.set_adapter(variant)
            yield

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask of a batch, [S, T], padded on the left."""
        import torch

        width = max(map(len, rows))
        ids = [[PAD] * (width - len(row)) + list(row) for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)


def _by_length(texts: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Indices in batches of about equal length, the longest first."""
    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
