"""Compiled networks: the cache of kernels that a study's jobs share, and who fills it.

Flows in: the folder of a cache; what is about to be compiled. Flows out: nothing but files of torch's own in that folder, and a marker for each thing that was
compiled whole. Only whole batches run compiled, so that every network is compiled for one size. The first job to need something compiles it, and those beside
it wait for that, as long as compiling takes them too; the rule ``kernels`` does it ahead of them for what makes images, where one asks for it. No job has
its results as an input: switching compilation on would then make Snakemake run them all again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.files import canonical_hash
from augbench.runtime.launcher import lock_file

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def share_cache(folder: str | Path) -> None:
    """Let torch keep compiled kernels in ``folder``, or where the user's environment says.

    To be called before diffusers or transformers are imported: then torch writes a folder of its own choice into the environment.
    """
    os.environ.setdefault(VARIABLE, str(Path(folder).resolve()))


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def compile_network(network: torch.nn.Module) -> None:
    """Compile the whole of a network for the sizes of batches that it meets; that happens when it meets them."""
    network.compile(fullgraph=True, dynamic=False)


def compile_pipeline(pipeline: StableDiffusionPipeline) -> None:
    """Compile the U-Net and the decoder."""
    compile_network(pipeline.unet)
    compile_network(pipeline.vae.decoder)


def copies_to_fill(size: int, whole: int) -> int | None:
    """How many copies of its last item make ``size`` items a batch of ``whole``; None for fewer than half a batch, which is quicker uncompiled."""
    return whole - size if 2 * size >= whole else None


def kernels_of(unet: UNet2DConditionModel, **others: Any) -> dict[str, Any]:
    """What decides the kernels that a U-Net is compiled to: versions, device, architecture, precision, and ``others``, such as sizes."""
    import torch

    device = torch.cuda.get_device_name() if unet.device.type == "cuda" else "cpu"
    return {
        "torch": torch.__version__,
        "device": device,
        "unet": unet.to_json_string(),
        "dtype": str(unet.dtype),
        **others,
    }


@contextmanager
def first_alone(folder: Path, what: Any) -> Iterator[None]:
    """Of all jobs that compile ``what`` (plain values) into the cache in ``folder``, let the first one go ahead and the others wait until it is done."""
    name = canonical_hash(what)
    done = folder / f"{name}.done"
    with (folder / f"{name}.lock").open("a") as stream:
        lock_file(stream, fcntl.LOCK_EX)
        first = not done.exists()
        if first:
            yield
            done.touch()
    if not first:
        yield
