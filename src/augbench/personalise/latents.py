"""Latents of a study's images: encoded once, kept in the store, and read from the disk while training.

Input: classes with their images, and the VAE. Output: for each class, the latent moments of its training
images and of its validation images. Each is a file of the store under a key that names the images, the VAE,
the resolution and the precision, but no method, learning rate or job: all of them share it. Jobs that need
the same files at the same time share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from augbench.artifacts.store import Store, Tally
from augbench.config.study import Study
from augbench.data.source import ImageSource
from augbench.files import canonical_hash
from augbench.personalise.data import encode_moments
from augbench.personalise.families import side_of
from augbench.personalise.tasks import ClassTask, ImageSet
from augbench.plan.recipes import Recipe, latents_recipe
from augbench.progress import Progress
from augbench.runtime.fit import BatchLimit
from augbench.runtime.precision import resolve

KIND, SUFFIX = "latents", ".npy"


@dataclass(frozen=True)
class Encoding:
    """How a study's images become latents.

    Attributes
    ----------
    vae : str
        Hash of the VAE's files.
    source : ImageSource
        The data set.
    what : str
        Prefix of the progress lines.
    """

    study: Study
    vae: str
    source: ImageSource
    device: torch.device
    what: str

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of the VAE."""
        return resolve(self.study.finetune.dtype, self.device)

    def recipe(self, images: ImageSet, mirror: bool) -> Recipe:
        """Recipe of the latents of some images of one class."""
        return {
            **latents_recipe(self.study, images.stamps is not None),
            "resolution": side_of(self.study.diffusion),
            "vae": self.vae,
            "dtype": str(self.dtype).removeprefix("torch."),
            "images": canonical_hash(images.key_names),
            "mirror": mirror,
        }

    def moments(
        self, vae: AutoencoderKL, images: ImageSet, mirror: bool, limit: BatchLimit
    ) -> Iterator[torch.Tensor]:
        """Yield the latent moments of some images, batch by batch."""
        return encode_moments(
            vae,
            images=self.source.load_unchanged(images.sources, images.stamps),
            resolution=side_of(self.study.diffusion),
            mirror=mirror,
            limit=limit,
            dtype=torch.float32 if self.dtype == torch.float32 else torch.float16,
        )


def write_stream(path: Path, batches: Iterator[torch.Tensor], rows: int, progress: Progress) -> None:
    """Write batches of ``rows`` rows altogether as one NumPy file; only one batch is in memory."""
    with path.open("wb") as stream:
        for batch in batches:
            values = batch.numpy()
            if not stream.tell():
                header = {
                    "descr": values.dtype.str,
                    "fortran_order": False,
                    "shape": (rows, *batch.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(values.tobytes())
            progress.update(len(batch))


def read_mapped(path: Path) -> torch.Tensor:
    """Map a NumPy file into memory; its pages are read when they are used."""
    # copy on write: torch takes only arrays that may be written to
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def is_whole(path: Path) -> bool:
    """Whether a NumPy file has all its rows."""
    try:
        read_mapped(path)
    except (ValueError, EOFError, OSError):
        return False
    return True


def latents_of(
    encoding: Encoding,
    load_vae: Callable[[], AutoencoderKL],
    limit: BatchLimit,
    store: Store,
    tasks: Sequence[ClassTask],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Latent moments of the training images and of the validation images of each class.

    Those that the store lacks are encoded; the VAE is loaded for that alone. Tensors are mapped files in the
    form of :func:`~augbench.personalise.data.encode_moments`.

    Raises
    ------
    UserError
        An image is missing or damaged, the disk is full, or not even one image fits into the GPU's memory.
    """
    store = replace(store, tally=Tally())  # the job's tally counts what it was asked for
    mirror = encoding.study.finetune.flip > 0
    parts = [(task.train, mirror) for task in tasks] + [(task.validation, False) for task in tasks]
    recipes = {id(part): encoding.recipe(*part) for part in parts}

    def recipe_of(part: tuple[ImageSet, bool]) -> Recipe:
        return recipes[id(part)]

    def is_there(part: tuple[ImageSet, bool]) -> bool:
        return store.has(KIND, recipe_of(part), SUFFIX, is_whole)

    store.note_passing_uses(KIND, recipes.values(), SUFFIX)
    vae = None
    missing = sum(len(part[0]) for part in parts if not is_there(part))
    progress = Progress(f"{encoding.what}, latents", missing, "image")
    for (part,) in store.in_turn(KIND, parts, recipe_of, is_there, at_once=1):
        if vae is None:
            vae = load_vae()
        write = partial(
            write_stream,
            batches=encoding.moments(vae, *part, limit),
            rows=len(part[0]),
            progress=progress,
        )
        store.commit(KIND, recipe_of(part), SUFFIX, write)
    mapped = [read_mapped(store.path(KIND, recipe_of(part), SUFFIX)) for part in parts]
    return mapped[: len(tasks)], mapped[len(tasks) :]
