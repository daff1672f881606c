"""Learned text states for the denoiser: learned directly, or encoded from a learned pseudo-word.

Input: the text encoder and its tokenizer, and the meaning of each row. Output: rows of values to learn,
and text states ``(N, tokens, width)`` whose gradients reach only these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from augbench.config.pipelines import STABLE_DIFFUSION_XL, learned_entries
from augbench.models.folders import to_device
from augbench.models.words import learn_words


class Rows(Protocol):
    """Learned vectors; each row belongs to one cluster of one class."""

    values: nn.Parameter  # float32 (rows, ...)

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Text states ``(N, tokens, width)`` of samples; the random numbers ``draws`` choose the prompts.

        Models that ask with more than one tensor get several.
        """

    def entries(self, values: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Rows of ``values`` as their files have them, by the ending of an entry's name."""


class _OneEntry:
    """Rows whose values are one entry of their files."""

    def entries(self, values: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The values, under a name without an ending."""
        return {"": values}


def _endings(learn: str) -> list[str]:
    """Endings of the names of the entries of what is learned of Stable Diffusion XL."""
    return [f".{entry}" for entry in learned_entries(STABLE_DIFFUSION_XL, learn)]


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


class ConditioningRows(_OneEntry):
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


class ConditioningRowsXL:
    """Text states and pooled text states of Stable Diffusion XL that are learned directly.

    Parameters
    ----------
    states, pooled : Tensor
        Initial values, ``(rows, tokens, width)`` of both text encoders together, and ``(rows, width)`` of the
        second one.
    """

    def __init__(self, states: torch.Tensor, pooled: torch.Tensor) -> None:
        self._shape = states.shape[1:]
        self.values = nn.Parameter(torch.cat([states.flatten(1), pooled], 1).detach().float())

    def entries(self, values: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Text states ``(rows, tokens, width)`` and pooled text states ``(rows, width)``."""
        states, pooled = values.tensor_split([self._shape.numel()], 1)
        return dict(zip(_endings("conditioning"), (states.unflatten(1, self._shape), pooled), strict=True))

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Values of the rows; ``draws`` is ignored, because there is no prompt to choose."""
        return tuple(self.entries(self.values[to_device(torch.tensor(rows), self.values.device)]).values())


def word_embedding(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, word: str) -> torch.Tensor:
    """Mean embedding ``(width,)`` of the tokens of ``word``, from which a pseudo-word starts.

    Source: paper, section 3.1.
    """
    ids = tokenizer(word, add_special_tokens=False).input_ids
    return text_encoder.get_input_embeddings().weight[ids].float().mean(0)


class PseudowordRows(_OneEntry):
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
        self.values = nn.Parameter(values.detach().float().to(text_encoder.device).clone())
        learn_words(text_encoder, tokenizer, words, self.values)
        self._ids = _Ids(tokenizer, self.values.device)

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> torch.Tensor:
        """Text states of the rows' prompts; each distinct prompt is encoded once."""
        prompts, places = _distinct(self.prompt, rows, draws)
        states = self.text_encoder(self._ids(prompts)).last_hidden_state
        return states[to_device(places, states.device)]


class PseudowordRowsXL:
    """New words of both text encoders of Stable Diffusion XL, whose embeddings are learned together.

    Text states are the encoders' last but one, side by side; the second encoder's pooled output goes with
    them, as in diffusers' pipeline (and in its ``textual_inversion_sdxl.py``).

    Parameters
    ----------
    encoders : sequence of tuple
        Each text encoder with its tokenizer; both get the words.
    words : sequence of str
        The new word of each row.
    values : sequence of Tensor
        Initial values for each encoder, ``(rows, width)``.
    prompt : callable
        Function from a row and a random number to a prompt that contains the row's word.

    Raises
    ------
    UserError
        A tokenizer already knows one of the words.
    """

    def __init__(
        self,
        encoders: Sequence[tuple[Any, CLIPTokenizer]],
        words: Sequence[str],
        values: Sequence[torch.Tensor],
        prompt: Callable[[int, int], str],
    ) -> None:
        self.prompt, self._widths = prompt, [own.shape[1] for own in values]
        self.values = nn.Parameter(torch.cat(list(values), 1).detach().float())
        ends = [0, *accumulate(self._widths)]
        for (encoder, tokenizer), columns in zip(encoders, pairwise(ends), strict=True):
            learn_words(encoder, tokenizer, words, self.values, slice(*columns))
        self._encoders = [(encoder, _Ids(tokenizer, self.values.device)) for encoder, tokenizer in encoders]

    def entries(self, values: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Embeddings ``(rows, width)`` of each text encoder."""
        return dict(zip(_endings("pseudoword"), values.split(self._widths, 1), strict=True))

    def states(self, rows: Sequence[int], draws: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Text states and pooled text states of the rows' prompts; each distinct prompt is encoded once."""
        prompts, places = _distinct(self.prompt, rows, draws)
        outputs = [encoder(ids(prompts), output_hidden_states=True) for encoder, ids in self._encoders]
        states = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        places = to_device(places, states.device)
        return states[places], outputs[-1].text_embeds[places]


class _Ids:
    """Token ids of prompts, each made once."""

    def __init__(self, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids ``int64 (N, tokens)`` on the device."""
        if unknown := [prompt for prompt in prompts if prompt not in self._known]:
            self._known.update(zip(unknown, token_ids(self.tokenizer, unknown), strict=True))
        return to_device(torch.stack([self._known[prompt] for prompt in prompts]), self.device)


def _distinct(
    prompt: Callable[[int, int], str], rows: Sequence[int], draws: Sequence[int]
) -> tuple[list[str], torch.Tensor]:
    """Distinct prompts of samples, and the place of each sample's prompt among them, on the CPU."""
    prompts = [prompt(row, draw) for row, draw in zip(rows, draws, strict=True)]
    distinct = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
    return list(distinct), torch.tensor([distinct[text] for text in prompts])


class PromptRows(_OneEntry):
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
