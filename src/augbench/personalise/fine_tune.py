"""Set up a fine-tuning from the config and run it, with only the needed parts of the model in memory.

Input: classes with their images, the study's ``finetune`` section, a method, and one factor on its learning
rates. Output: what every class has learned. The safety checker is never loaded. The VAE is loaded only if the
store lacks latents, and dropped then. The text encoder is kept only if there are prompts to encode: with
pseudo-words, or for adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from augbench.config.models import Diffusion
from augbench.config.study import Study
from augbench.data.source import ImageSource
from augbench.models.folders import pick_device
from augbench.models.tokenizer import CleaningTokenizer
from augbench.personalise.embedding import (
    ConditioningRows,
    ConditioningRowsXL,
    PromptRows,
    PseudowordRows,
    PseudowordRowsXL,
    Rows,
    token_ids,
    word_embedding,
)
from augbench.personalise.families import family_of, load_encoder, side_of, word_encoders
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
    """Settings to fine-tune ``classes`` classes at one factor on the learning rates, in ``dtype``."""
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


def prompt_of(
    study: Study, method: PersonaliseMethod, tasks: Sequence[ClassTask], words: Sequence[str] = ()
) -> Callable[[int, int], str]:
    """Function from a row of vectors and a random number to a prompt of its class; with its word, if any."""

    def prompt(row: int, draw: int) -> str:
        info, word = tasks[row // method.clusters].info, words[row] if words else None
        return prompt_for(info, draw, method.prompting, study.seed, word)

    return prompt


def new_rows(
    study: Study, method: PersonaliseMethod, tasks: Sequence[ClassTask], device: torch.device
) -> Rows:
    """Learned values at their start; all clusters of a class start with equal values.

    The text encoder is kept only if a pseudo-word is learned, or adapters, for which no value is learned.
    """
    folder, clusters = study.diffusion.folder, method.clusters
    dtype = torch.float32 if method.learn == "conditioning" else resolve(study.finetune.dtype, device)
    words = [word for task in tasks for word in placeholders(task.info.class_id, clusters)]
    if (family := family_of(study.diffusion)) is not None:
        pipeline = load_encoder(study.diffusion, family, dtype, device)
        if method.learns_words:
            encoders = word_encoders(study.diffusion, pipeline)
            firsts = [
                torch.stack([word_embedding(*encoder, start_word(task)) for task in tasks])
                for encoder in encoders
            ]
            values = [starts.repeat_interleave(clusters, 0) for starts in firsts]
            return PseudowordRowsXL(encoders, words, values, prompt_of(study, method, tasks, words))

        @lru_cache(PROMPTS_KEPT)
        @torch.no_grad()
        def states(prompt: str) -> tuple[torch.Tensor, ...]:
            return family.encode(pipeline, prompt, device)

        if not method.learns_vectors:
            return PromptRows(states, prompt_of(study, method, tasks), len(tasks), device)
        each = [states(start_prompt(task, method, study.seed)) for task in tasks]
        text, pooled = (torch.cat(parts).repeat_interleave(clusters, 0) for parts in zip(*each, strict=True))
        return ConditioningRowsXL(text, pooled)
    tokenizer = CleaningTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    encoder = load_part(CLIPTextModel, folder, "text_encoder", dtype, device)
    if method.learn == "conditioning":
        prompts, limit = [start_prompt(task, method, study.seed) for task in tasks], batch_limit(study)

        @torch.no_grad()
        def encoded(part: Sequence[str]) -> torch.Tensor:
            return encoder(token_ids(tokenizer, part).to(device)).last_hidden_state

        parts = micro_batches(prompts, limit.size)
        starts = torch.cat([values for part in parts for values in limit.run(encoded, part)])
        return ConditioningRows(starts.repeat_interleave(clusters, 0))
    if not method.learns_vectors:

        @lru_cache(PROMPTS_KEPT)
        @torch.no_grad()
        def states_of(prompt: str) -> tuple[torch.Tensor, ...]:
            return (encoder(token_ids(tokenizer, [prompt]).to(device)).last_hidden_state,)

        return PromptRows(states_of, prompt_of(study, method, tasks), len(tasks), device)
    starts = torch.stack([word_embedding(encoder, tokenizer, start_word(task)) for task in tasks])
    prompt = prompt_of(study, method, tasks, words)
    return PseudowordRows(encoder, tokenizer, words, starts.repeat_interleave(clusters, 0), prompt)


def unlearned(
    study: Study, method: PersonaliseMethod, tasks: Sequence[ClassTask], like: Learned
) -> dict[str, Learned]:
    """Vectors of classes that do not learn, as they start, for the candidates of ``like``; by class_id."""
    rows = new_rows(study, method, tasks, pick_device(study.execution.device))
    learned = {}
    for task, own in zip(tasks, rows.values.detach().cpu().split(method.clusters), strict=True):
        entries = rows.entries(own)
        vectors = {
            name: next(values.clone() for ending, values in entries.items() if name.endswith(ending))
            for name in like.vectors
        }
        learned[task.info.class_id] = Learned(vectors, like.epochs, like.best_epoch, (), like.dtype)
    return learned


def load_vae(encoding: Encoding) -> AutoencoderKL:
    """Load the VAE; on a GPU in the layout that tensor cores work in."""
    folder, device = encoding.study.diffusion.folder, encoding.device
    vae = load_part(AutoencoderKL, folder, "vae", encoding.dtype, device)
    return vae.to(memory_format=torch.channels_last) if device.type == "cuda" else vae


def _denoiser(model: Diffusion, dtype: torch.dtype, device: torch.device) -> tuple[str, dict[str, Any]]:
    """The part of a model that denoises: its name, and the arguments of :class:`Trainer` that it gives."""
    family = family_of(model)
    network = UNet2DConditionModel if family is None else family.network
    part = "unet" if family is None else family.part
    unet = load_part(network, model.folder, part, dtype, device)
    schedule = DDPMScheduler if family is None else family.scheduler
    scheduler = schedule.from_config(
        schedule.load_config(model.folder, subfolder="scheduler", local_files_only=True)
    )
    predict = None if family is None else family.predict(unet, side_of(model))
    return part, {"unet": unet, "scheduler": scheduler, "predict": predict}


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
    part, networks = _denoiser(study.diffusion, precision, device)
    common = {**networks, "settings": settings}
    where = f"methods.{name}.targets"
    adapter = None if method.lora is None else Adapter(networks["unet"], method.lora, part, where)
    if adapter is None or method.shares_weights:
        if adapter is not None:
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
    learned = {}
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
