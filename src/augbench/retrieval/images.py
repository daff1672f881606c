"""Images of retrieved neighbours.

Flows in: ids of the miniature corpus. Flows out: RGB images, read from the corpus's Parquet parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from augbench.plan import CORPUS_ROWS_PER_PART


class CorpusImages:
    """Random access to the miniature corpus's images by id; the last parts read are kept."""

    def __init__(self, parts: Sequence[str | Path]) -> None:
        self.parts = [Path(part) for part in parts]
        self._encoded: dict[int, list[bytes]] = {}

    def __getitem__(self, key: int) -> Image.Image:
        part, row = divmod(key, CORPUS_ROWS_PER_PART)
        if part not in self._encoded:
            column = pq.read_table(self.parts[part], columns=["image"]).column("image").combine_chunks()
            self._encoded[part] = column.field("bytes").to_pylist()
        return Image.open(BytesIO(self._encoded[part][row])).convert("RGB")
