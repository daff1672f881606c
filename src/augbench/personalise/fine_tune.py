"""Set up a fine-tuning from the config and run it, with only the needed parts of Stable Diffusion in memory.

Input: classes with their images, the study's ``finetune`` section, a method, and one factor on its learning
rates. Output: what every class has learned. The safety checker is never loaded. The VAE is dropped when the
latents are cached. The text encoder is kept only if a pseudo-word is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from augbench.config.methods import PersonaliseMethod
from augbench.config.study import Study
from augbench.data.source import ImageSource
from augbench.models.folders import pick_device
from augbench.models.tokenizer import CleaningTokenizer
from augbench.personalise.data import cache_moments
from augbench.personalise.embedding import ConditioningRows, PseudowordRows, Rows, token_ids, word_embedding
from augbench.personalise.groups import Learned, Settings
from augbench.personalise.tasks import ClassTask, ImageSet, learning_rates, start_prompt, start_word
from augbench.personalise.train import Trainer, micro_batches
from augbench.progress import Progress
from augbench.prompts.placeholders import placeholders
from augbench.prompts.stage import prompt_for
from augbench.runtime.compiling import cache_folder, first_alone

T = TypeVar("T")


def settings_of(study: Study, method: PersonaliseMethod, factor: float, classes: int) -> Settings:
    """Settings of the fine-tuning of ``classes`` classes at one factor on the learning rates."""
    finetune = study.finetune
    lr, unet_lr = learning_rates(study, method, factor, classes)
    mixed_precision = method.train_unet and finetune.dtype != "float32"
    return Settings(
        seed=study.seed,
        lr=lr,
        unet_lr=unet_lr,
        clusters=method.clusters,
        train_unet=method.train_unet,
        candidates=method.candidate_names,
        batch_size=finetune.batch_size,
        max_epochs=method.last_epoch(finetune.max_epochs),
        patience=finetune.patience,
        flip=finetune.flip,
        validation_draws=finetune.validation_draws,
        weight_decay=finetune.weight_decay,
        micro_batch=study.execution.batch_size,
        compiled=study.execution.compile,
        autocast=getattr(torch, finetune.dtype) if mixed_precision else None,
    )


def load_part(kind: type[T], folder: str, part: str, dtype: torch.dtype, device: torch.device) -> T:
    """Load one part of a Stable Diffusion folder, frozen and in evaluation mode; other parts are not read."""
    # with low_cpu_mem_usage, diffusers needs accelerate; transformers has no such option
    options = {} if issubclass(kind, CLIPTextModel) else {"low_cpu_mem_usage": False}
    load = kind.from_pretrained  # type: ignore[attr-defined]
    module = load(folder, subfolder=part, dtype=dtype, local_files_only=True, **options)
    return module.eval().requires_grad_(False).to(device)


def new_rows(
    study: Study, method: PersonaliseMethod, tasks: Sequence[ClassTask], device: torch.device
) -> Rows:
    """Learned values at their start; all clusters of a class start with equal values.

    The text encoder is kept only if a pseudo-word is learned.
    """
    folder, clusters = study.diffusion.folder, method.clusters
    tokenizer = CleaningTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    if method.learn == "conditioning":
        encoder = load_part(CLIPTextModel, folder, "text_encoder", torch.float32, device)
        with torch.no_grad():
            prompts = [start_prompt(task, method, study.seed) for task in tasks]
            parts = micro_batches(prompts, study.execution.batch_size)
            states = torch.cat(
                [encoder(token_ids(tokenizer, part).to(device)).last_hidden_state for part in parts]
            )
        return ConditioningRows(states.repeat_interleave(clusters, 0))
    encoder = load_part(CLIPTextModel, folder, "text_encoder", getattr(torch, study.finetune.dtype), device)
    words = [word for task in tasks for word in placeholders(task.info.class_id, clusters)]
    starts = torch.stack([word_embedding(encoder, tokenizer, start_word(task)) for task in tasks])

    def prompt(row: int, draw: int) -> str:
        return prompt_for(tasks[row // clusters].info, draw, method.prompting, study.seed, words[row])

    return PseudowordRows(encoder, tokenizer, words, starts.repeat_interleave(clusters, 0), prompt)


def unlearned(
    study: Study, method: PersonaliseMethod, tasks: Sequence[ClassTask], like: Learned
) -> dict[str, Learned]:
    """Vectors of classes that do not learn, as they start, for the candidates of ``like``; by class_id."""
    values = new_rows(study, method, tasks, pick_device(study.execution.device)).values.detach().cpu()
    return {
        task.info.class_id: Learned(
            {name: own.clone() for name in like.vectors}, like.epochs, like.best_epoch, history=()
        )
        for task, own in zip(tasks, values.split(method.clusters), strict=True)
    }


def encode_images(
    study: Study, tasks: Sequence[ClassTask], source: ImageSource, device: torch.device, what: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent moments of all training images and of all validation images, class by class.

    The VAE is in memory only during this call.
    """
    dtype = getattr(torch, study.finetune.dtype)
    vae = load_part(AutoencoderKL, study.diffusion.folder, "vae", dtype, device)
    kept = torch.float32 if dtype == torch.float32 else torch.float16
    sets = [task.train for task in tasks], [task.validation for task in tasks]
    progress = Progress(f"{what}, latents", sum(len(images) for part in sets for images in part), "image")

    def moments(images: Sequence[ImageSet], mirror: bool) -> torch.Tensor:
        sources = [place for part in images for place in part.sources]
        return cache_moments(
            vae,
            images=source.load(sources),
            resolution=study.diffusion.resolution,
            mirror=mirror,
            batch_size=study.execution.batch_size,
            dtype=kept,
            progress=progress,
        )

    return moments(sets[0], study.finetune.flip > 0), moments(sets[1], False)


def fine_tune(
    study: Study,
    method: PersonaliseMethod,
    factor: float,
    tasks: Sequence[ClassTask],
    source: ImageSource,
    folder: Path,
    what: str,
) -> dict[str, Learned]:
    """Fine-tune ``method`` for the classes of ``tasks``.

    Parameters
    ----------
    factor : float
        Multiplies the learning rates.
    folder : Path
        Working folder of this training. It holds the checkpoint and, at the end, a folder
        ``unet_epoch{epoch}`` for each candidate of a trained U-Net.
    what : str
        Prefix of the progress lines.

    Returns
    -------
    dict of Learned
        Results by class_id.
    """
    device = pick_device(study.execution.device)
    settings = settings_of(study, method, factor, len(tasks))
    moments, validation_moments = encode_images(study, tasks, source, device, what)
    rows = new_rows(study, method, tasks, device)
    dtype = torch.float32 if method.train_unet else getattr(torch, study.finetune.dtype)
    unet = load_part(UNet2DConditionModel, study.diffusion.folder, "unet", dtype, device)
    scheduler = DDPMScheduler.from_config(
        DDPMScheduler.load_config(study.diffusion.folder, subfolder="scheduler", local_files_only=True)
    )
    trainer = Trainer(
        tasks=tasks,
        rows=rows,
        unet=unet,
        scheduler=scheduler,
        moments=moments,
        validation_moments=validation_moments,
        settings=settings,
        folder=folder,
        what=what,
    )
    if settings.compiled:
        with first_alone(cache_folder(), trainer.compiled_for()):
            trainer.warm_up()
    return trainer.run()
