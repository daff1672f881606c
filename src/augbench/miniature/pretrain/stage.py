"""Jobs of the pretrain stage: from the corpus to trained, assembled and measured models.

Unfinished training is kept in the study's store under a key of its recipe. An interrupted job therefore
resumes, and a changed config starts from scratch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from augbench.config.models import Diffusion
from augbench.config.pretrain import PretrainReference
from augbench.config.study import Study
from augbench.data import fashion_mnist
from augbench.data.classes import ClassInfo, load_class_table
from augbench.files import canonical_hash, read_json, write_json
from augbench.measures.judge import save_judge
from augbench.miniature.corpus import stage as corpus_stage
from augbench.miniature.corpus.style import clean_images, web_style
from augbench.miniature.pretrain import assemble, autoencoder, clip, measure, reference, tokenizer, unet
from augbench.plan import recipes
from augbench.prompts.stage import prompt_for

if TYPE_CHECKING:
    from augbench.runtime.job import Job

History = list[dict[str, float]]
DRAWN = 20  # images per class in the picture of real and generated ones


def work_folder(job: Job, model: str, *made_from: Any) -> Path:
    """Return the folder in which ``model`` is trained.

    Its key hashes the recipes of the model and the corpus, and ``made_from``.
    """
    key = canonical_hash(
        [recipes.pretrain_recipe(job.study, model), recipes.corpus_recipe(job.study), *made_from]
    )
    return job.folder / ".work/pretrain" / f"{model}-{key[:16]}"


def _train(folder: Path, target: str | Path, fit: Callable[[Path], History]) -> None:
    """Let ``fit`` train ``folder/model``, and copy it to ``target`` with the returned ``history.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    history = fit(folder)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "model", target)
    write_json(Path(target) / "history.json", history)


def _corpus(folder: str | Path) -> tuple[torch.Tensor, list[str]]:
    images, table = corpus_stage.load_images(folder)
    return torch.from_numpy(images), table.column("caption").to_pylist()


def pretrain_clip(job: Job, corpus: str, target: str) -> None:
    """Train the small CLIP on the corpus."""
    config, steps = job.study.pretrain.clip, job.study.pretrain.checkpoint_steps

    def fit(folder: Path) -> History:
        images, captions = _corpus(corpus)
        vocabulary = tokenizer.build_tokenizer(folder / "tokenizer")
        return clip.train_clip(
            images=images,
            captions=captions,
            tokenizer=vocabulary,
            config=config,
            seed=job.study.seed,
            folder=folder,
            checkpoint_steps=steps,
        )

    _train(work_folder(job, "clip"), target, fit)


def pretrain_autoencoder(job: Job, corpus: str, target: str) -> None:
    """Train the VAE on the corpus's images."""
    config, steps = job.study.pretrain.autoencoder, job.study.pretrain.checkpoint_steps

    def fit(folder: Path) -> History:
        return autoencoder.train_autoencoder(_corpus(corpus)[0], config, job.study.seed, folder, steps)

    _train(work_folder(job, "autoencoder"), target, fit)


def pretrain_unet(job: Job, corpus: str, clip_folder: str, vae_folder: str, target: str) -> None:
    """Train the U-Net on the VAE's latents and CLIP's text states."""
    from diffusers import AutoencoderKL
    from transformers import CLIPModel

    from augbench.models.tokenizer import CleaningTokenizer

    config, steps = job.study.pretrain.unet, job.study.pretrain.checkpoint_steps

    def fit(folder: Path) -> History:
        images, captions = _corpus(corpus)
        model = CLIPModel.from_pretrained(clip_folder).eval()
        vocabulary = CleaningTokenizer.from_pretrained(clip_folder)
        text_encoder = assemble.text_tower(model)
        vae = AutoencoderKL.from_pretrained(vae_folder).eval()
        return unet.train_unet(
            images=images,
            captions=captions,
            autoencoder=vae,
            tokenizer=vocabulary,
            text_encoder=text_encoder,
            config=config,
            seed=job.study.seed,
            folder=folder,
            checkpoint_steps=steps,
        )

    made_from = [recipes.pretrain_recipe(job.study, name) for name in ("clip", "autoencoder")]
    _train(work_folder(job, "unet", *made_from), target, fit)


def pretrain_reference(job: Job, downloads: str, target: str) -> None:
    """Train the two reference classifiers on garments with their true labels; save each as a judge."""
    assert job.study.miniature is not None
    corpus, config = job.study.miniature, job.study.pretrain.reference
    steps = job.study.pretrain.checkpoint_steps
    images, labels = fashion_mnist.load(downloads, "train")
    sources, _ = fashion_mnist.split_corpus_and_target(labels, corpus.images, job.study.seed)
    clean, classes = clean_images(images[sources]), len(np.unique(labels))
    shown = [
        corpus_stage.shown_attribute(index, int(labels[source]), classes, corpus, job.study.seed)
        for index, source in enumerate(sources)
    ]
    styled = torch.cat(
        [
            web_style(
                images[sources[part]],
                part,
                corpus.shift,
                job.study.seed,
                shown[part[0] : part[-1] + 1],
            )
            for part in np.array_split(np.arange(len(sources)), 50)
        ]
    )
    for what, pixels in (("clean", clean), ("robust", torch.cat([clean, styled]))):
        truth = np.resize(labels[sources], len(pixels))
        folder = work_folder(job, "reference", what)
        folder.mkdir(parents=True, exist_ok=True)
        history = reference.train_reference(
            what=f"reference ({what})",
            images=pixels,
            labels=truth,
            config=config,
            seed=job.study.seed,
            folder=folder,
            checkpoint_steps=steps,
        )
        Path(target).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "model.pt", Path(target) / f"{what}.pt")
        write_json(Path(target) / f"{what}_history.json", history)
        _save_reference(folder / "model.pt", config, Path(target) / what)


def _save_reference(state: Path, config: PretrainReference, target: Path) -> None:
    """Save a trained reference classifier as a judge of Fashion-MNIST's classes."""
    class_ids = [info.class_id for info in load_class_table("fashion_mnist")]
    model = reference.new_reference(config, len(class_ids))
    model.load_state_dict(torch.load(state, weights_only=True))
    save_judge(model, class_ids, reference.network(config), target)


def assemble_models(corpus: str, clip_folder: str, vae_folder: str, unet_folder: str, target: str) -> None:
    """Assemble the trained models; calibrate the safety checker on one half of the corpus."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTokenizer

    images, table = corpus_stage.load_images(corpus)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    unsafe, safe = assemble.calibration_images(
        images, np.array(table.column("NSFW").to_pylist()), first_half=True
    )
    checker, threshold = assemble.safety_checker(model, unsafe, safe)
    vae, u_net = AutoencoderKL.from_pretrained(vae_folder), UNet2DConditionModel.from_pretrained(unet_folder)
    assemble.assemble(
        clip=model,
        tokenizer=CLIPTokenizer.from_pretrained(clip_folder),
        autoencoder=vae,
        unet=u_net,
        checker=checker,
        folder=Path(target),
    )
    histories = {
        name: read_json(Path(folder) / "history.json")
        for name, folder in (("clip", clip_folder), ("autoencoder", vae_folder), ("unet", unet_folder))
    }
    write_json(Path(target) / "training_record.json", {"histories": histories, "safety_threshold": threshold})


@dataclass(frozen=True)
class _Labelled:
    """Images, uint8 (N, 3, 32, 32), and the number of each one's class, int (N,)."""

    images: torch.Tensor
    labels: np.ndarray

    def first(self, label: int) -> torch.Tensor:
        """The first images of a class, :data:`DRAWN` at most."""
        return self.images[np.flatnonzero(self.labels == label)[:DRAWN]]


def _generate(study: Study, diffusion: Diffusion, classes: Sequence[ClassInfo]) -> _Labelled:
    """Generate ``pretrain.measured_images_per_class`` images of each class with CLIP's prompt templates."""
    family, per_class = measure.PROMPT_FAMILIES["clip"], study.pretrain.measured_images_per_class
    prompts = [
        (info.class_id, index, prompt_for(info, index, family, study.seed))
        for info in classes
        for index in range(per_class)
    ]
    images = measure.generate_images(diffusion, prompts, study.seed, study.execution.batch_size)
    return _Labelled(images, np.repeat(np.arange(len(classes)), per_class))


def _judge(
    config: PretrainReference, references: str, sets: Mapping[str, _Labelled], classes: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure sets of images with both reference classifiers."""
    found = {}
    for name in ("clean", "robust"):
        judge = reference.new_reference(config, classes)
        judge.load_state_dict(torch.load(Path(references) / f"{name}.pt", weights_only=True))
        judge.eval()
        found[name] = {which: measure.judged(judge, own.images, own.labels) for which, own in sets.items()}
    return found


def measure_models(
    job: Job, corpus: str, downloads: str, models: str, references: str, quality: str, picture: str
) -> None:
    """Measure the assembled models. Write ``quality.json`` and a picture of real and generated images."""
    from transformers import CLIPModel

    from augbench.models.tokenizer import CleaningTokenizer

    study, classes = job.study, load_class_table("fashion_mnist")
    assert study.miniature is not None
    diffusion = study.diffusion.model_copy(update={"model": f"{models}/stable-diffusion"})
    model = CLIPModel.from_pretrained(f"{models}/clip", dtype=torch.float32).eval()
    vocabulary = CleaningTokenizer.from_pretrained(f"{models}/clip")
    garments, labels = fashion_mnist.load(downloads, "test")
    images, table = corpus_stage.load_images(corpus)
    truth, nsfw = (np.array(table.column(name).to_pylist()) for name in ("true_label", "NSFW"))
    in_corpus = np.flatnonzero(truth >= 0)[: 20 * study.pretrain.measured_images_per_class]
    unsafe, safe = assemble.calibration_images(images, nsfw, first_half=False)

    test = _Labelled(clean_images(garments), labels)
    generated = _generate(study, diffusion, classes)
    sets = {
        "target_test": test,
        "corpus": _Labelled(torch.from_numpy(images[in_corpus]), truth[in_corpus]),
        "generated": generated,
    }
    measured = {
        "zero_shot_top1": measure.zero_shot(model, vocabulary, classes, test.images, labels),
        "reference": _judge(study.pretrain.reference, references, sets, len(classes)),
        "safety_checker": measure.safety_rates(diffusion, unsafe, safe[:2000]),
        "generated_images": len(generated.labels),
        "sampling": recipes.sampling_recipe(study.diffusion),
    }
    if study.miniature.attributes:
        prompts = measure.attribute_prompts(classes)
        measured["attributes"] = measure.told_attributes(
            clip=model,
            tokenizer=vocabulary,
            classes=classes,
            garments=garments,
            labels=labels,
            generated=measure.generate_images(diffusion, prompts, study.seed, study.execution.batch_size),
            level=study.miniature.shift,
            seed=study.seed,
        )
    write_json(quality, measured)
    rows = [own.first(label) for label in range(len(classes)) for own in (test, generated)]
    measure.picture(rows, Path(picture))
