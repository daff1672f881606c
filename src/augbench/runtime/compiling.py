"""Compiled networks, and the cache of kernels that a study's jobs share.

The cache folder holds torch's own files and one marker per finished compilation. Only full batches run
compiled, so each network is compiled for one batch size. The first job that needs a kernel compiles it, and
parallel jobs wait for it. On request, the rule ``kernels`` compiles the networks that make images before
those jobs start. No job has the cache as an input: otherwise, switching compilation on would make Snakemake
run all of them again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
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
    """Let torch keep compiled kernels in ``folder``, unless the user's environment names another one.

    Call this before diffusers or transformers are imported: their import makes torch write its own folder
    into the environment.
    """
    os.environ.setdefault(VARIABLE, str(Path(folder).resolve()))


def cache_folder() -> Path:
    """Return the folder of compiled kernels."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def compile_network(network: torch.nn.Module) -> None:
    """Compile a whole network. It is compiled at the first batch of each size."""
    network.compile(fullgraph=True, dynamic=False)


def compile_pipeline(pipeline: StableDiffusionPipeline) -> None:
    """Compile the U-Net and the VAE's decoder."""
    compile_network(pipeline.unet)
    compile_network(pipeline.vae.decoder)


def copies_to_fill(size: int, whole: int) -> int | None:
    """Number of copies of the last item that fill ``size`` items up to a batch of ``whole``.

    None for less than half a batch, which is faster uncompiled.
    """
    return whole - size if 2 * size >= whole else None


def run_filled(network: Callable[..., torch.Tensor], whole: int, *inputs: torch.Tensor) -> torch.Tensor:
    """Run a compiled network on a batch that is filled up to ``whole`` items with copies of its last one.

    Results of copies are dropped. A batch of less than half that size runs uncompiled.
    """
    import torch

    size = len(inputs[0])
    copies = copies_to_fill(size, whole)
    if copies is None:
        with torch.compiler.set_stance("force_eager"):
            return network(*inputs)
    if not copies:
        return network(*inputs)
    filled = [torch.cat([values, values[-1:].expand(copies, *values.shape[1:])]) for values in inputs]
    return network(*filled)[:size]


def kernels_of(unet: UNet2DConditionModel, **others: Any) -> dict[str, Any]:
    """Describe all that decides a U-Net's kernels.

    These are torch's version, device, architecture, precision, and ``others``: plain values, such as sizes.
    """
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
    """Let the first job compile ``what`` (plain values) into the cache in ``folder``, and others wait for it.

    Once ``what`` has been compiled, jobs no longer wait for each other.
    """
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
