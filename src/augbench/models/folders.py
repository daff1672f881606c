"""Load models from folders, and hash their content.

Input: a folder in diffusers' or transformers' layout. Output: a fingerprint for recipes and provenance, or
the loaded model, in evaluation mode, on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.config.hub import MARKER
from augbench.config.models import NO_SAFETY_CHECKER, Diffusion
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json, sha256_file
from augbench.runtime.compiling import compile_network, run_filled
from augbench.runtime.fit import BatchLimit, needing_memory
from augbench.runtime.overlap import Uploads, behind
from augbench.runtime.precision import resolve

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    from augbench.models.pipelines import Checker

MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".txt", ".model"}
SAFETY_FOLDERS = ("safety_checker/", "feature_extractor/")
TEXTS_AT_ONCE = 64


def model_files(folder: str | Path) -> list[Path]:
    """List the files of a model (configuration, vocabulary, weights), sorted."""
    return sorted(
        path
        for path in Path(folder).rglob("*")
        if path.suffix in MODEL_SUFFIXES and path.name != MARKER and path.is_file()
    )


def fingerprint(folder: str | Path, safety_checker: str | None = "model") -> dict[str, Any]:
    """Hash a model's files, and return the hashes with one ``id`` over them all.

    The fingerprint of a fetched model also names its repository and revision.

    Parameters
    ----------
    safety_checker : str, optional
        ``model``, a folder, or None, as in ``diffusion.safety_checker``. With a folder, its files replace
        those of the model's own safety checker; with None, the model's own are left out.

    Raises
    ------
    UserError
        The folder has no model, or a fetched model that has changed since.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in model_files(folder)}
    if not any(name.endswith((".safetensors", ".bin")) for name in files):
        raise UserError(
            str(folder), "no weights there", "a folder in diffusers' or transformers' layout is needed"
        )
    fetched = read_json(folder / MARKER) if (folder / MARKER).is_file() else {"files": {}}
    for name, file in fetched["files"].items():
        if files.get(name) != file["sha256"]:
            raise UserError(
                str(folder / name),
                f"SHA-256 {files.get(name)}, fetched with {file['sha256']}",
                f"delete {folder / MARKER} and run again",
            )
    if safety_checker != "model":
        files = {name: digest for name, digest in files.items() if not name.startswith(SAFETY_FOLDERS)}
        if safety_checker is not None:
            apart = fingerprint(safety_checker)["files"]
            files |= {f"safety_checker/{name}": digest for name, digest in apart.items()}
    pinned = {key: fetched[key] for key in ("repository", "revision") if key in fetched}
    return {"id": canonical_hash(files)[:16], "folder": str(folder), "files": files, **pinned}


def pick_device(wanted: str) -> torch.device:
    """Return ``auto``, ``cpu`` or ``cuda`` as a torch device.

    Raises
    ------
    UserError
        ``cuda`` without a GPU, or a GPU that torch can't use.
    """
    import torch

    from augbench.runtime.gpus import require_usable

    if wanted != "cpu":
        require_usable(wanted)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device", "'cuda', but no GPU is available here", "allowed here: auto, cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy values from main memory to ``device``; the copy to a GPU is asynchronous."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _require(folder: str | Path) -> None:
    if not Path(folder).is_dir():
        raise UserError(
            str(folder),
            "no such folder",
            "put the model back, or fetch it again by deleting the study's folder models/",
        )


def load_pipeline(diffusion: Diffusion, device: torch.device) -> StableDiffusionPipeline:
    """Load Stable Diffusion with the study's sampler, precision and safety checker.

    The pipeline has no safety checker only if the study says so.

    Raises
    ------
    UserError
        The model's folder is missing, or the model has no safety checker and the study names no other.
    """
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline

    from augbench.models.tokenizer import CleaningTokenizer

    _require(diffusion.folder)
    assert diffusion.scheduler is not None
    dtype = resolve(diffusion.dtype, device)
    checker = safety_components(diffusion.safety_checker_folder, dtype)
    tokenizer = CleaningTokenizer.from_pretrained(
        diffusion.folder, subfolder="tokenizer", local_files_only=True
    )
    pipeline = StableDiffusionPipeline.from_pretrained(
        diffusion.folder,
        tokenizer=tokenizer,
        dtype=dtype,
        local_files_only=True,
        low_cpu_mem_usage=False,
        **checker,
    )
    if not checker and pipeline.feature_extractor is not None:
        pipeline.feature_extractor = load_processor(Path(diffusion.folder) / "feature_extractor")
    schedulers = {"pndm": PNDMScheduler, "ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
    pipeline.scheduler = schedulers[diffusion.scheduler].from_config(pipeline.scheduler.config)
    if pipeline.safety_checker is None and diffusion.safety_checker is not None:
        raise UserError(
            "diffusion.safety_checker", f"{diffusion.model} has none of its own", NO_SAFETY_CHECKER
        )
    pipeline.set_progress_bar_config(disable=True)
    # a GPU's half-precision units work on channels last; other layouts would be copied for each convolution
    if device.type == "cuda":
        for network in (pipeline.unet, pipeline.vae):
            network.to(memory_format=torch.channels_last)
    return pipeline.to(device)


def load_unet(pipeline: StableDiffusionPipeline, folder: str | Path) -> None:
    """Load the weights in ``folder`` into the pipeline's U-Net; a compiled network stays compiled."""
    from diffusers import UNet2DConditionModel

    _require(folder)
    unet = UNet2DConditionModel.from_pretrained(folder, dtype=pipeline.unet.dtype, local_files_only=True)
    pipeline.unet.load_state_dict(unet.state_dict())


def safety_components(folder: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return the pipeline's arguments for its safety checker.

    ``model``: none, so the pipeline keeps its own. None: a pipeline without one. A folder: the checker in it.
    """
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    if folder == "model":
        return {}
    if folder is None:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    _require(folder)
    return {
        "safety_checker": StableDiffusionSafetyChecker.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        ),
        "feature_extractor": load_processor(folder),
        "requires_safety_checker": True,
    }


def load_clip(folder: str | Path, device: torch.device) -> tuple[CLIPModel, CLIPTokenizer]:
    """Load CLIP and its tokenizer, in single precision; raise :class:`UserError` if the folder is missing."""
    import torch
    from transformers import CLIPModel

    from augbench.models.tokenizer import CleaningTokenizer

    _require(folder)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval().to(device), CleaningTokenizer.from_pretrained(folder, local_files_only=True)


def load_processor(folder: str | Path) -> CLIPImageProcessorPil:
    """Load CLIP's image processor; it resizes with Pillow, as OpenAI's code and open_clip do.

    transformers' default resizes with torchvision, which gives other pixels.
    """
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Compute unit text embeddings ``float32 (N, D)``, on the model's device.

    Texts repeat, so each distinct text is encoded once. Padding costs time, so texts of similar length
    share a batch. The text tower is causal, so padding does not change the embeddings.
    """
    import torch

    def embedded(batch: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(
            list(batch),
            padding="longest",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        features = model.get_text_features(**tokens.to(model.device)).pooler_output
        return torch.nn.functional.normalize(features, dim=-1)

    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    with torch.inference_mode():
        parts = list(BatchLimit(TEXTS_AT_ONCE, "CLIP", "text").run(embedded, distinct))
    row_of = {text: row for row, text in enumerate(distinct)}
    return torch.cat(parts)[[row_of[text] for text in texts]]


def _cut(image: Image.Image, shorter: int, crop: tuple[int, int], resample: Any) -> Image.Image:
    """Resize and crop an image as transformers' image processor does, bit for bit.

    The processor converts to arrays and back, and blocks other threads meanwhile; this does not.
    """
    width, height = image.size
    short, long = sorted((width, height))
    longer = int(shorter * long / short)
    size = (shorter, longer) if width <= height else (longer, shorter)
    resized = (image if image.mode == "RGB" else image.convert("RGB")).resize(size, resample)
    left, top = ((side - cut) // 2 for side, cut in zip(size, reversed(crop), strict=True))
    return resized.crop((left, top, left + crop[1], top + crop[0]))


class ImageTower:
    """Compute CLIP's image embeddings, with its own image processor; call it with images.

    The last layer is computed for the class token alone, the only one that CLIP reads. This saves a
    thirtieth of the work for ViT-L/14 and a fifth for a small network, and leaves the result unchanged.

    Parameters
    ----------
    model : CLIPModel
        From :func:`load_clip`. It is modified: after its last layer, only the hidden state of the class
        token is valid.
    processor : CLIPImageProcessorPil
        From the same folder.
    half : bool
        Multiply matrices in float16, as CLIP's authors do; norms, sums and the result are float32.
    compiled : bool
        Compile the network, for the batches of :meth:`embed_all`.
    """

    def __init__(
        self,
        model: CLIPModel,
        processor: CLIPImageProcessorPil,
        half: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model, self.processor, self.half, self.compiled = model, processor, half, compiled
        self._uploads = Uploads(model.device)
        last = model.vision_model.encoder.layers[-1]
        # Keep only the first token. Later additions broadcast the result to all tokens, but only the first
        # is read.
        for module in (last.self_attn.out_proj, last.layer_norm2):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :1],))
        if compiled:
            compile_network(model.vision_model)

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Resize and crop images to pixels, uint8 ``(N, 3, H, W)``, on the CPU.

        Other threads may do this ahead of :meth:`embed`.
        """
        import numpy as np
        import torch

        from augbench.data.decode import middle

        images = [middle(image) for image in images]
        if self._sides is None:
            cut = self.processor(images, do_rescale=False, do_normalize=False, return_tensors="np")
            return torch.from_numpy(cut.pixel_values)
        pixels = np.stack([np.asarray(_cut(image, *self._sides)) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    @cached_property
    def _sides(self) -> tuple[int, tuple[int, int], Any] | None:
        """Shorter side, crop ``(height, width)`` and resampling; None for an unusual processor."""
        processor = self.processor
        shorter = processor.size.get("shortest_edge", 0)
        crop = (processor.crop_size["height"], processor.crop_size["width"])
        usual = (
            processor.do_convert_rgb
            and processor.do_resize
            and processor.do_center_crop
            and shorter >= max(crop)
        )
        return (shorter, crop, processor.resample) if usual else None

    @cached_property
    def _normalisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each colour, ``(1, 3, 1, 1)``, on the device."""
        import torch

        mean, std = (
            to_device(torch.tensor(values).view(1, -1, 1, 1), self.model.device)
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return mean, std

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed pixels from :meth:`prepare`: float32 ``(N, D)``, not normalised, on the model's device."""
        import torch

        device, processor = self.model.device, self.processor
        values = to_device(pixels, device)
        # same order and precision as the processor, so the same bits, but for a whole batch at once
        if processor.do_rescale:
            values = (values.double() * processor.rescale_factor).float()
        if processor.do_normalize:
            mean, std = self._normalisation
            values = (values - mean) / std
        with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=self.half):
            return self.model.get_image_features(pixel_values=values.float()).pooler_output.float()

    def embed_all(self, batches: Iterable[torch.Tensor], limit: BatchLimit) -> Iterator[torch.Tensor]:
        """Embed batches of pixels in main memory, of at most ``limit.size`` images each.

        On a GPU, the next batch is copied there while it embeds one, and results are read one batch behind.

        Yields
        ------
        Tensor, float32 (n, D)
            Unit embeddings in main memory, in order.
        """
        import torch

        def embedded(pixels: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
            part = pixels[rows[0] : rows[-1] + 1]
            found = run_filled(self.embed, limit.size, part) if self.compiled else self.embed(part)
            return torch.nn.functional.normalize(found, dim=-1)

        def results() -> Iterator[torch.Tensor]:
            with needing_memory(limit.key, f"the pixels of {limit.size} images"):
                for pixels in self._uploads.ahead(batches):
                    yield from limit.run(partial(embedded, pixels), range(len(pixels)))

        yield from behind(results())

    def embed_images(
        self, images: Iterable[Image.Image], limit: BatchLimit, threads: int
    ) -> Iterator[torch.Tensor]:
        """Embed images of any size, which ``threads`` threads prepare; yields as :meth:`embed_all`."""
        from augbench.batches import in_batches
        from augbench.data.decode import in_order

        return self.embed_all(in_order(self.prepare, in_batches(images, limit.size), threads), limit)

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Embed images of any size: float32 ``(N, D)``, not normalised."""
        return self.embed(self.prepare(images))


def load_image_tower(
    folder: str | Path,
    device: torch.device,
    model: CLIPModel | None = None,
    half: bool = False,
    compiled: bool = False,
) -> ImageTower:
    """Load CLIP's image tower from a folder; raise :class:`UserError` if the folder is missing.

    Parameters
    ----------
    model : CLIPModel, optional
        The model of the same folder, if :func:`load_clip` has loaded it already.
    half, compiled : bool
        As :class:`ImageTower`.
    """
    return ImageTower(
        load_clip(folder, device)[0] if model is None else model,
        load_processor(folder),
        half,
        compiled,
    )


def check_safety(
    pipeline: StableDiffusionPipeline | Checker,
    images: Sequence[Image.Image],
    limit: BatchLimit | None = None,
) -> list[bool]:
    """Whether the pipeline's safety checker flags each of the images; without a checker, none is.

    By default, it looks at as many of them at once as fit into memory.
    """
    import numpy as np
    import torch

    from augbench.data.decode import middle

    if pipeline.safety_checker is None:
        return [False] * len(images)
    device, dtype = pipeline.safety_checker.device, pipeline.safety_checker.dtype

    def flagged(batch: Sequence[Image.Image]) -> Sequence[bool]:
        cut = [middle(image) for image in batch]
        pixels = pipeline.feature_extractor(cut, return_tensors="pt").pixel_values.to(device, dtype)
        blank = [np.zeros((1, 1, 3), dtype=np.float32) for _ in batch]
        with torch.inference_mode():
            return pipeline.safety_checker(images=blank, clip_input=pixels)[1]

    limit = limit or BatchLimit(len(images), "safety checker")
    return [bool(flag) for flags in limit.run(flagged, images) for flag in flags]
