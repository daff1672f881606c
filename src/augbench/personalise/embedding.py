"""Learned text states for the denoiser: learned directly, or encoded from a learned pseudo-word.

Input: the text encoder and its tokenizer, and the meaning of each row. Output: rows of values to learn,
and text states ``(N, tokens, width)`` whose gradients reach only these rows.
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
    """Learned vectors; each row belongs to one cluster of one class."""

    values: nn.Parameter  # float32 (rows, ...)

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Text states ``(N, tokens, width)`` of samples; the random numbers ``draws`` choose the prompts.

        Models that ask with more than one tensor get several.
        """


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids ``int64 (N, tokens)``, padded and truncated to the encoder's length as in diffusers."""
    encoded = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    return encoded.input_ids


class ConditioningRows:
    """Text states that are learned directly, without a text encoder (paper, section 3.1).

    The paper's methods FT conditioning and Imagic learn them.

    Parameters
    ----------
    values : Tensor
        Initial values, ``(rows, tokens, width)``.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self.values = nn.Parameter(values.detach().float().clone())

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> torch.Tensor:
        """Values of the rows; ``draws`` is ignored, because there is no prompt to choose."""
        return self.values[to_device(torch.tensor(rows), self.values.device)]


class LearnedEmbedding(nn.Module):
    """A frozen table of token embeddings, followed by learned rows for new tokens.

    Parameters
    ----------
    table : Embedding
        The text encoder's own table.
    values : Parameter
        Learned embeddings, ``(rows, width)``; row i is token ``first + i``.
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
    """Mean embedding ``(width,)`` of the tokens of ``word``, from which a pseudo-word starts.

    Source: paper, section 3.1.
    """
    ids = tokenizer(word, add_special_tokens=False).input_ids
    return text_encoder.get_input_embeddings().weight[ids].float().mean(0)


class PseudowordRows:
    """Learned token embeddings of new words (paper, section 3.1: textual inversion).

    The frozen text encoder turns them into text states. Its table of embeddings is wrapped, and the
    tokenizer gets the new words; nothing else of the two changes.

    Parameters
    ----------
    text_encoder, tokenizer
        Those of the diffusion model.
    words : sequence of str
        The new word of each row.
    values : Tensor
        Initial values, ``(rows, width)``.
    prompt : callable
        Function from a row and a random number to a prompt that contains the row's word.

    Raises
    ------
    UserError
        The tokenizer already knows one of the words.
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


class PromptRows:
    """Text states of prompts with class names, from the frozen text encoder; no vectors are learned.

    Parameters
    ----------
    encode : callable
        Function from a prompt to its text states: tensors ``(1, ...)``. Prompts are encoded one by one, so
        that the states do not depend, in any bit, on the other images of a batch.
    prompt : callable
        Function from a row and a random number to a prompt.
    rows : int
        Number of rows, one per class.
    device : device
        Of the states.
    """

    def __init__(
        self,
        encode: Callable[[str], tuple[torch.Tensor, ...]],
        prompt: Callable[[int, int], str],
        rows: int,
        device: torch.device,
    ) -> None:
        self.encode, self.prompt = encode, prompt
        self.values = nn.Parameter(torch.zeros((rows, 0), device=device))

    def of(self, row: int) -> PromptRows:
        """The rows of one class alone."""
        return PromptRows(self.encode, lambda _, draw: self.prompt(row, draw), 1, self.values.device)

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Text states of the rows' prompts."""
        prompts = [self.prompt(row, draw) for row, draw in zip(rows, draws, strict=True)]
        encoded = zip(*(self.encode(prompt) for prompt in prompts), strict=True)
        return tuple(torch.cat(values) for values in encoded)
