"""Set up a fine-tuning from the config and run it, with only the needed parts of the model in memory.

Input: classes with their images, the study's ``finetune`` section, a method, and one factor on its learning
rates. Output: what every class has learned. The safety checker is never loaded. The VAE is loaded only if the
store lacks latents, and dropped then. The text encoder is kept only if there are prompts to encode: with
pseudo-words, or for adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from augbench.artifacts.adapters import FILE, read_adapter
from augbench.artifacts.store import Store
from augbench.config.methods import PersonaliseMethod
from augbench.config.study import Study
from augbench.data.source import ImageSource
from augbench.models.folders import pick_device
from augbench.models.tokenizer import CleaningTokenizer
from augbench.personalise.embedding import (
    ConditioningRows,
    PromptRows,
    PseudowordRows,
    Rows,
    token_ids,
    word_embedding,
)
from augbench.personalise.families import family_of, load_encoder, side_of
from augbench.personalise.groups import Learned, Settings
from augbench.personalise.latents import Encoding, latents_of
from augbench.personalise.tasks import ClassTask, learning_rates, start_prompt, start_word
from augbench.personalise.train import MICRO_BATCH, Trainer, micro_batches, weights_folder
from augbench.personalise.weights import Adapter
from augbench.prompts.placeholders import placeholders
from augbench.prompts.stage import prompt_for
from augbench.runtime.compiling import cache_folder, first_alone
from augbench.runtime.fit import BatchLimit
from augbench.runtime.precision import resolve

T = TypeVar("T")
PROMPTS_KEPT = 1000  # encoded prompts in memory: 0.24 GB in float32 for Stable Diffusion 1.x


def batch_limit(study: Study) -> BatchLimit:
    """Limit of the images that go through the networks together."""
    return BatchLimit(study.finetune.micro_batch or study.execution.batch_size, MICRO_BATCH)


def settings_of(
    study: Study,
    method: PersonaliseMethod,
    factor: float,
    classes: int,
    dtype: torch.dtype = torch.float32,
) -> Settings:
    """Settings of the fine-tuning of ``classes`` classes at one factor on the learning rates, in ``dtype``."""
    finetune = study.finetune
    lr, unet_lr = learning_rates(study, method, factor, classes)
    trains_weights = method.train_unet or method.lora is not None
    return Settings(
        seed=study.seed,
        lr=lr,
        unet_lr=unet_lr if method.lora is None else lr,
        clusters=method.clusters,
        train_unet=method.train_unet,
        candidates=method.candidate_names,
        batch_size=finetune.batch_size,
        max_epochs=method.last_epoch(finetune.max_epochs),
        patience=finetune.patience,
        flip=finetune.flip,
        validation_draws=finetune.validation_draws,
        weight_decay=finetune.weight_decay,
        micro_batch=batch_limit(study).size,
        compiled=study.execution.compile,
        autocast=dtype if trains_weights and dtype != torch.float32 else None,
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

    The text encoder is kept only if a pseudo-word is learned, or adapters, for which no value is learned.
    """
    folder, clusters = study.diffusion.folder, method.clusters

    def class_prompt(row: int, draw: int) -> str:
        return prompt_for(tasks[row].info, draw, method.prompting, study.seed)

    if (family := family_of(study.diffusion)) is not None:
        pipeline = load_encoder(study.diffusion, family, resolve(study.finetune.dtype, device), device)
        encode = family.encode

        @lru_cache(PROMPTS_KEPT)
        @torch.no_grad()
        def states(prompt: str) -> tuple[torch.Tensor, ...]:
            return encode(pipeline, prompt, device)

        return PromptRows(states, class_prompt, len(tasks), device)
    tokenizer = CleaningTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    if method.learn == "conditioning":
        encoder = load_part(CLIPTextModel, folder, "text_encoder", torch.float32, device)
        prompts, limit = [start_prompt(task, method, study.seed) for task in tasks], batch_limit(study)

        @torch.no_grad()
        def encoded(part: Sequence[str]) -> torch.Tensor:
            return encoder(token_ids(tokenizer, part).to(device)).last_hidden_state

        parts = micro_batches(prompts, limit.size)
        starts = torch.cat([values for part in parts for values in limit.run(encoded, part)])
        return ConditioningRows(starts.repeat_interleave(clusters, 0))
    dtype = resolve(study.finetune.dtype, device)
    encoder = load_part(CLIPTextModel, folder, "text_encoder", dtype, device)
    if not method.learns_vectors:

        @lru_cache(PROMPTS_KEPT)
        @torch.no_grad()
        def states_of(prompt: str) -> tuple[torch.Tensor, ...]:
            return (encoder(token_ids(tokenizer, [prompt]).to(device)).last_hidden_state,)

        return PromptRows(states_of, class_prompt, len(tasks), device)
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
            {name: own.clone() for name in like.vectors}, like.epochs, like.best_epoch, (), like.dtype
        )
        for task, own in zip(tasks, values.split(method.clusters), strict=True)
    }


def load_vae(encoding: Encoding) -> AutoencoderKL:
    """Load the VAE; on a GPU in the layout that tensor cores work in."""
    folder, device = encoding.study.diffusion.folder, encoding.device
    vae = load_part(AutoencoderKL, folder, "vae", encoding.dtype, device)
    return vae.to(memory_format=torch.channels_last) if device.type == "cuda" else vae


def fine_tune(
    study: Study,
    name: str,
    factor: float,
    tasks: Sequence[ClassTask],
    source: ImageSource,
    store: Store,
    vae: str,
    folder: Path,
    what: str,
) -> dict[str, Learned]:
    """Fine-tune the method ``name`` for the classes of ``tasks``.

    Parameters
    ----------
    factor : float
        Multiplies the learning rates.
    store : Store
        Keeps latents.
    vae : str
        Hash of the VAE's files.
    folder : Path
        Working folder of this training. It holds the checkpoint and, at the end, a folder
        ``unet_epoch{epoch}`` or ``adapter_epoch{epoch}`` for each candidate of what all classes share.
    what : str
        Prefix of the progress lines.

    Returns
    -------
    dict of Learned
        Results by class_id.
    """
    method, device = study.personalised[name], pick_device(study.execution.device)
    dtype = resolve(study.finetune.dtype, device)
    settings = settings_of(study, method, factor, len(tasks), dtype)
    encoding = Encoding(study, vae, source, device, what)
    moments, validation_moments = latents_of(
        encoding, partial(load_vae, encoding), batch_limit(study), store, tasks
    )
    rows = new_rows(study, method, tasks, device)
    precision = torch.float32 if method.train_unet else dtype
    model = study.diffusion
    family = family_of(model)
    network = UNet2DConditionModel if family is None else family.network
    part = "unet" if family is None else family.part
    unet = load_part(network, model.folder, part, precision, device)
    schedule = DDPMScheduler if family is None else family.scheduler
    scheduler = schedule.from_config(
        schedule.load_config(model.folder, subfolder="scheduler", local_files_only=True)
    )
    predict = None if family is None else family.predict(unet, side_of(model))
    common: dict[str, Any] = {"unet": unet, "scheduler": scheduler, "settings": settings, "predict": predict}
    if method.lora is None or method.shares_weights:
        adapter = None
        if method.lora is not None:
            adapter = Adapter(unet, method.lora, part, f"methods.{name}.targets")
            adapter.start(study.seed)
        trainer = Trainer(
            tasks=tasks,
            rows=rows,
            moments=moments,
            validation_moments=validation_moments,
            folder=folder,
            what=what,
            adapter=adapter,
            **common,
        )
        return _trained(trainer)
    assert isinstance(rows, PromptRows)
    adapter, learned = Adapter(unet, method.lora, part, f"methods.{name}.targets"), {}
    for number, task in enumerate(tasks):
        class_id = task.info.class_id
        adapter.start(study.seed, class_id)
        trainer = Trainer(
            tasks=[task],
            rows=rows.of(number),
            moments=moments[number : number + 1],
            validation_moments=validation_moments[number : number + 1],
            folder=folder / class_id,
            what=f"{what}, {class_id}",
            adapter=adapter,
            **common,
        )
        size = trainer.limit.size
        results = _trained(trainer, warm=number > 0)
        if trainer.limit.size < size:  # memory did not suffice, and won't for the next class
            common["settings"] = replace(common["settings"], micro_batch=trainer.limit.size)
        learned[class_id] = with_adapters(results[class_id], folder / class_id)
    return learned


def _trained(trainer: Trainer, warm: bool = False) -> dict[str, Learned]:
    """Result of a training; a network to compile is compiled first, unless ``warm`` says that it is."""
    if trainer.settings.compiled and not warm:
        with first_alone(cache_folder(), trainer.compiled_for()):
            trainer.warm_up()
    return trainer.run()


def with_adapters(learned: Learned, folder: Path) -> Learned:
    """Result of a class with the adapters that its training kept in ``folder``, as its vectors."""
    vectors: dict[str, torch.Tensor] = {}
    for candidate, epoch in learned.epochs.items():
        tensors, _ = read_adapter(weights_folder(folder, Adapter.name, epoch) / FILE)
        vectors |= {f"{candidate}.{name}": torch.from_numpy(values) for name, values in tensors.items()}
    return replace(learned, vectors=vectors)
