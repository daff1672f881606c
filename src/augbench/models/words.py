"""New words of a CLIP text encoder, with embeddings of their own, in training and in sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import CLIPTokenizer

from augbench.errors import UserError


class LearnedEmbedding(nn.Module):
    """A frozen table of token embeddings, followed by rows for new tokens.

    Parameters
    ----------
    table : Embedding
        The text encoder's own table.
    values : Parameter
        ``(rows, columns)``; row i is token ``first + i``.
    first : int
        Size of the vocabulary without the new tokens.
    columns : slice
        Those of ``values`` that are this table's; others may be another encoder's.
    """

    def __init__(
        self, table: nn.Embedding, values: nn.Parameter, first: int, columns: slice = slice(None)
    ) -> None:
        super().__init__()
        self.table, self.values, self.first, self.columns = table, values, first, columns

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(..., width)`` of ``ids``."""
        known = self.table(ids.clamp(max=self.first - 1))
        learned = self.values[(ids - self.first).clamp(min=0)][..., self.columns].to(known.dtype)
        return torch.where((ids >= self.first).unsqueeze(-1), learned, known)


def learn_words(
    text_encoder: Any,
    tokenizer: CLIPTokenizer,
    words: Sequence[str],
    values: nn.Parameter,
    columns: slice = slice(None),
) -> None:
    """Give a text encoder and its tokenizer new words, whose embeddings are the rows of ``values``.

    The table of embeddings is wrapped. The pooled output is taken at the end of a text: configs of before
    2023, such as SDXL's, have an ``eos_token_id`` for which transformers takes it at the token of the highest
    number, which a new word has.

    Raises
    ------
    UserError
        The tokenizer already knows one of the words.
    """
    if known := sorted(set(words) & set(tokenizer.get_vocab())):
        raise UserError(
            "class_id", f"{known[0]!r} is a token of the text encoder", "give the class another class_id"
        )
    first = len(tokenizer)
    tokenizer.add_tokens(list(words))
    table = text_encoder.get_input_embeddings()
    text_encoder.set_input_embeddings(LearnedEmbedding(table, values, first, columns))
    getattr(text_encoder, "text_model", text_encoder).eos_token_id = tokenizer.eos_token_id
