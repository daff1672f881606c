"""CLIP's tokenizer with OpenAI's cleaning of texts, which transformers no longer does.

transformers 5 has CLIP's vocabulary alone: a curly quote, a ligature or ``&amp;`` in a caption gets other ids
than in OpenAI's and open_clip's tokenizers, with which CLIP and Stable Diffusion were trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import ftfy
from transformers import BatchEncoding, CLIPTokenizer


class CleaningTokenizer(CLIPTokenizer):
    """CLIPTokenizer that repairs texts with ftfy and lowers them before it encodes, as OpenAI's does.

    Added words such as pseudo-words stay as they are. Its files are those of CLIPTokenizer.
    """

    def __call__(self, text: str | Sequence[str], **options: Any) -> BatchEncoding:
        """Encode a text or a list of texts; the options are those of CLIPTokenizer."""
        cleaned = self._clean(text) if isinstance(text, str) else [self._clean(each) for each in text]
        return super().__call__(cleaned, **options)

    def _clean(self, text: str) -> str:
        words = sorted(self.get_added_vocab(), key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, words))})", text)
        return "".join(part if part in words else ftfy.fix_text(part).lower() for part in parts)
