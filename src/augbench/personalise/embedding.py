"""What is learned, as the denoiser sees it: text states, either learned themselves or the text encoder's for a pseudo-word.

Flows in: the text encoder and its tokenizer, and what each row stands for. Flows out: rows of values to learn, and text states
``(N, tokens, width)`` that carry gradients to the rows and to nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from augbench.errors import UserError
from augbench.models.folders import to_device


class Rows(Protocol):
    """Learned vectors; a row belongs to one cluster of one class."""

    values: nn.Parameter  # float32 (rows, ...)

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> torch.Tensor:
        """Text states ``(N, tokens, width)`` for samples of ``rows``; ``draws`` are random numbers that choose a prompt."""


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> torch.Tensor:
    """Tokens ``int64 (N, tokens)``, padded and cut to the text encoder's length as diffusers' pipeline does."""
    encoded = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    return encoded.input_ids


class ConditioningRows:
    """Text states that are learned themselves; no text encoder is needed (paper, section 3.1: FT conditioning, Imagic).

    Parameters
    ----------
    values : Tensor
        Where they start, ``(rows, tokens, width)``.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self.values = nn.Parameter(values.detach().float().clone())

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> torch.Tensor:
        """The rows' values; there is no prompt to choose."""
        return self.values[to_device(torch.tensor(rows), self.values.device)]


class LearnedEmbedding(nn.Module):
    """A frozen table of token embeddings, and learned rows for the tokens after its vocabulary.

    Parameters
    ----------
    table : Embedding
        The text encoder's own.
    values : Parameter
        ``(rows, width)``; row i is token ``first + i``.
    first : int
        Size of the vocabulary without the new tokens.
    """

    def __init__(self, table: nn.Embedding, values: nn.Parameter, first: int) -> None:
        super().__init__()
        self.table, self.values, self.first = table, values, first

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(..., width)`` of ``ids``."""
        known = self.table(ids.clamp(max=self.first - 1))
        learned = self.values[(ids - self.first).clamp(min=0)].to(known.dtype)
        return torch.where((ids >= self.first).unsqueeze(-1), learned, known)


def word_embedding(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, word: str) -> torch.Tensor:
    """Where a pseudo-word starts: the mean of the embeddings of the tokens of ``word``, ``(width,)`` (paper, section 3.1)."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    return text_encoder.get_input_embeddings().weight[ids].float().mean(0)


class PseudowordRows:
    """Token embeddings of new words, seen through the frozen text encoder (paper, section 3.1: textual inversion).

    The text encoder's table of embeddings is wrapped, the tokenizer gets the new words; all else of both stays as it is.

    Parameters
    ----------
    text_encoder, tokenizer
        Of the diffusion model.
    words : sequence of str
        The new word of every row.
    values : Tensor
        Where they start, ``(rows, width)``.
    prompt : callable
        From a row and a random number to a prompt that holds the row's word.

    Raises
    ------
    UserError
        The tokenizer knows one of the words already.
    """

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        words: Sequence[str],
        values: torch.Tensor,
        prompt: Callable[[int, int], str],
    ) -> None:
        self.text_encoder, self.tokenizer, self.prompt = text_encoder, tokenizer, prompt
        if known := sorted(set(words) & set(tokenizer.get_vocab())):
            raise UserError(
                "class_id", f"{known[0]!r} is a token of the text encoder", "give the class another class_id"
            )
        table = text_encoder.get_input_embeddings()
        self.values = nn.Parameter(values.detach().float().to(table.weight.device).clone())
        first = len(tokenizer)
        tokenizer.add_tokens(list(words))
        text_encoder.set_input_embeddings(LearnedEmbedding(table, self.values, first))
        self._ids: dict[str, torch.Tensor] = {}

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> torch.Tensor:
        """Text states of the rows' prompts; each distinct prompt is encoded once."""
        prompts = [self.prompt(row, draw) for row, draw in zip(rows, draws, strict=True)]
        distinct = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        if unknown := [prompt for prompt in distinct if prompt not in self._ids]:
            self._ids.update(zip(unknown, token_ids(self.tokenizer, unknown), strict=True))
        ids = to_device(torch.stack([self._ids[prompt] for prompt in distinct]), self.values.device)
        states = self.text_encoder(ids).last_hidden_state
        return states[to_device(torch.tensor([distinct[prompt] for prompt in prompts]), states.device)]
