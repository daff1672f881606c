"""OpenAI's CLIP vocabulary in transformers' layout, from the byte-pair file that open_clip ships.

The tokenizer's ids equal OpenAI's.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

from transformers.convert_slow_tokenizer import bytes_to_unicode

from augbench.models.tokenizer import CleaningTokenizer

MERGES = 49152 - 256 - 2


def build_tokenizer(folder: Path) -> CleaningTokenizer:
    """Write ``vocab.json`` and ``merges.txt`` to ``folder`` and return the tokenizer.

    It pads with the end token, like Stable Diffusion's tokenizer.
    """
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.origin is not None
    byte_pairs = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(byte_pairs, "rt", encoding="utf-8") as stream:
        merges = stream.read().split("\n")[1 : MERGES + 1]
    symbols = list(bytes_to_unicode().values())
    tokens = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        *("".join(merge.split()) for merge in merges),
    ]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return CleaningTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>", model_max_length=77
    )
