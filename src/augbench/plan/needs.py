"""Resources that jobs request from a scheduler: memory, run time, GPUs and CPUs.

Input: the needs of each kind of job at its first attempt, and the profile's description of the cluster
(``default-resources`` in slurm/config.yaml). Output: values for ``resources:`` and ``threads:`` of the
rules, the same for every executor. Each attempt requests twice as much as the one before, so that a job
that was stopped for its memory or time succeeds later; the work it had finished comes from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from augbench.config.clips import architecture_config
from augbench.config.hub import known_model
from augbench.config.methods import PersonaliseMethod
from augbench.config.models import Diffusion
from augbench.config.study import Study
from augbench.errors import UserError, ending_in_one_line
from augbench.models.clip_size import parameters
from augbench.plan.uses_network import uses_network

# pixels; models that make smaller images are the miniature's and need MB instead of GB
SMALL_RESOLUTION = 128
# float32, of Stable Diffusion 1.x at 512 pixels: a learned vector, and the latent and noise of an image
VECTOR_BYTES = {"conditioning": 77 * 768 * 4, "pseudoword": 768 * 4}
XL_VECTOR_BYTES = {"conditioning": (77 * 2048 + 1280) * 4, "pseudoword": 2048 * 4}  # of both text encoders
ADAPTER_BYTES = 199_296 * 4  # of rank 1, on the attention projections of Stable Diffusion 1.x
SAMPLE_BYTES = 2 * 4 * 64 * 64 * 4
VIT_L_14_PARAMETERS = 428e6
NOT_GIVEN = ("", "None")
WEB_JOBS = ("nodes", "login")
# of a rule: plain values, or functions of wildcards and attempt
Resources = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """Description of the machines; the defaults are for a run without a profile.

    Attributes
    ----------
    gpu_type : str, optional
        Model of GPU to request, by the cluster's name for it; None: any.
    gpu_partition : str, optional
        Slurm partition of jobs that use a GPU; None: the partition of all jobs.
    gpus_per_job : int
        GPUs that a job may use: classifiers train on all of them, other jobs use one. 0: jobs compute on
        CPUs.
    threads_per_gpu : int
        CPUs per GPU of a job that uses GPUs; without GPUs, the CPUs of such a job.
    longest_job : int
        Upper limit in minutes for the run time that any attempt requests.
    largest_job : int
        Upper limit in MB for the memory that any attempt requests.
    web_jobs : str
        Place of jobs that retrieve images from the web: ``nodes`` (as other jobs) or ``login`` (where
        Snakemake runs).
    """

    gpu_type: str | None = None
    gpu_partition: str | None = None
    gpus_per_job: int = 1
    threads_per_gpu: int = 1
    longest_job: int = 1440
    largest_job: int = 256_000
    web_jobs: str = "nodes"


def learned_bytes(method: PersonaliseMethod, classes: int, model: Diffusion) -> int:
    """Size of what ``classes`` classes learn of a model for one candidate, without a trained U-Net."""
    if method.lora is not None:
        return ADAPTER_BYTES * method.lora.rank * (classes if method.lora.scope == "class" else 1)
    each = VECTOR_BYTES if model.other is None else XL_VECTOR_BYTES
    return classes * method.clusters * each[method.learn]


def read_site(default_resources: Mapping[str, object]) -> Site:
    """Read the description of the cluster from a profile.

    Parameters
    ----------
    default_resources : mapping
        Values as the profile has them. Other keys are ignored, and an empty value counts as not given.

    Raises
    ------
    UserError
        A value that is not allowed.
    """
    given: dict[str, Any] = {}
    for field in fields(Site):
        text = str(default_resources.get(field.name, "")).strip("'\" ")
        if text in NOT_GIVEN:
            continue
        where, least = f"default-resources: {field.name}", 0 if field.name == "gpus_per_job" else 1
        if isinstance(field.default, int) and (not text.isdecimal() or int(text) < least):
            raise UserError(where, repr(text), f"allowed: a whole number, at least {least}")
        if field.name == "web_jobs" and text not in WEB_JOBS:
            raise UserError(where, repr(text), f"allowed: {', '.join(WEB_JOBS)}")
        given[field.name] = int(text) if isinstance(field.default, int) else text
    return Site(**given)


@dataclass(frozen=True)
class Needs:
    """Resources that the rules of a study request from a site."""

    study: Study
    site: Site

    def job(self, miniature: int, full: int, minutes: int) -> Resources:
        """Resources of a job without a GPU.

        Parameters
        ----------
        miniature, full : int
            Main memory in MB at the first attempt, for the miniature's models and for full-size ones. It
            doubles with each further attempt, up to the site's largest job.
        minutes : int
            Run time at the first attempt. It doubles in the same way, up to the site's longest job.
        """
        small = self.study.diffusion.side < SMALL_RESOLUTION
        return {
            "mem_mb": _growing(miniature if small else full, self.site.largest_job),
            "runtime": _growing(minutes, self.site.longest_job),
        }

    @property
    def light(self) -> Resources:
        """Resources of a job that reads small files and ends within seconds."""
        return self.job(1000, 4000, minutes=30)

    @property
    def table(self) -> Resources:
        """Resources of a job that holds a table of all of a study's images."""
        return self.job(1000, 8000, minutes=60)

    @property
    def fetch(self) -> Resources:
        """Resources of a job that downloads or hashes large files."""
        return self.job(1000, 2000, minutes=240)

    def gpu_job(self, miniature: int, full: int, minutes: int) -> Resources:
        """Resources of a job that uses one GPU, if the site has any; parameters as in :meth:`job`."""
        return self._gpus(min(1, self.site.gpus_per_job)) | self.job(miniature, full, minutes)

    def clip_job(self, miniature: int, full: int, minutes: int) -> Resources:
        """Resources of a GPU job that loads CLIP; parameters as in :meth:`gpu_job`.

        An open_clip model larger than ViT-L/14 needs more main memory: its weights are there twice while they
        load. Models whose size its name does not tell are taken for no larger.
        """
        named = self.study.clip.named
        known = None if named.architecture is None else parameters(architecture_config(named.architecture))
        more = max(0, round(2 * 4 * ((known or 0) - VIT_L_14_PARAMETERS) / 1e6))
        return self.gpu_job(miniature + more, full + more, minutes)

    def embed_job(self, merges: bool = False) -> Resources:
        """Resources of a job that embeds a corpus, or that ``merges`` what others have embedded."""
        return (self.job if merges else self.clip_job)(3000, 16000, minutes=720)

    def search_job(self, merges: bool = False) -> Resources:
        """Resources of a job that searches a corpus, or that ``merges`` what others have found."""
        return (self.job if merges else self.clip_job)(6000, 32000, minutes=480)

    def generate_job(self, method: str, minutes: int = 240) -> Resources:
        """Resources of a job that generates a row's images; a model's weights pass through main memory."""
        model = self.study.generator_of(self.study.row_and_draw(method)[0])
        return self.gpu_job(*_of_model(model), minutes=minutes)

    def finetune_job(self, method: PersonaliseMethod, classes: int) -> Resources:
        """Resources of a job that fine-tunes ``classes`` classes.

        Latents stay on the disk. The vectors are there as values, gradients, moments, start and checkpoint,
        and twice for each candidate; a step's samples are there six times, because they are prepared ahead.
        """
        generator = method.generator_name
        model = self.study.diffusion if generator is None else self.study.generators[generator]
        vectors = learned_bytes(method, classes, model) * (6 + 2 * len(method.candidates))
        together = 1 if method.train_unet or method.lora is not None else classes
        samples = 6 * self.study.finetune.batch_size * together * SAMPLE_BYTES
        small, full = _of_model(model)
        more = round((vectors + samples) / 1e6)
        return self.gpu_job(small if model.other is None else small + more, full + more, minutes=720)

    def classifier_job(self, miniature: int, full: int, minutes: int) -> Resources:
        """Resources of a job that trains classifiers; parameters as in :meth:`job`."""
        return self._gpus(self._classifier_gpus) | self.job(miniature, full, minutes)

    @property
    def gpu_threads(self) -> int:
        """CPUs of a job that uses a GPU."""
        return self.site.threads_per_gpu

    @property
    def classifier_threads(self) -> int:
        """CPUs of a job that trains classifiers."""
        return max(1, self._classifier_gpus) * self.site.threads_per_gpu

    @property
    def _classifier_gpus(self) -> int:
        """GPUs of a job that trains classifiers: all it may use; one for a probe, a single layer."""
        most = self.site.gpus_per_job
        return min(1, most) if self.study.classifier.train == "probe" else most

    @property
    def download_is_local(self) -> bool:
        """Whether jobs that download images from the web run where Snakemake runs."""
        return self.site.web_jobs == "login" and uses_network("retrieve_", self.study)

    @property
    def search_is_local(self) -> bool:
        """Whether jobs that query a retrieval server run where Snakemake runs."""
        return self.site.web_jobs == "login" and uses_network("search", self.study)

    def _gpus(self, count: int) -> Resources:
        """Resources of one task on one node.

        A job starts further processes itself; by default the plugin would start the whole job once per GPU.
        """
        if not count:
            return {}
        asked: Resources = {"gpu": count, "nodes": 1, "tasks_per_gpu": 0}
        named = {"gpu_model": self.site.gpu_type, "slurm_partition": self.site.gpu_partition}
        return asked | {name: value for name, value in named.items() if value is not None}


def _of_model(model: Diffusion) -> tuple[int, int]:
    """Main memory in MB of a job with a diffusion model, in a miniature and in a full-size study.

    The weights of models other than Stable Diffusion 1.x and 2.x pass through it in either.
    """
    if model.other is None:
        return 3000, 16000
    megabytes = 3000 if model.side < SMALL_RESOLUTION else 16000
    megabytes += round(known_model(model.model).get("gigabytes", 0.0) * 1000)
    return megabytes, megabytes


def load_needs(study: Study, default_resources: Mapping[str, Any] | None) -> Needs:
    """Needs of a study at the site that a profile describes, for the Snakefile.

    A problem in the profile ends the parse with one clear line.

    Parameters
    ----------
    default_resources : mapping, optional
        Snakemake's, by name: plain values, or objects whose ``raw`` is the value as it was written.
    """
    with ending_in_one_line():
        return Needs(
            study,
            read_site(
                {name: getattr(value, "raw", value) for name, value in (default_resources or {}).items()}
            ),
        )


def _growing(first: int, most: int) -> Callable[[Any, int], int]:
    def needed(wildcards: Any, attempt: int) -> int:
        return int(min(first * 2 ** (attempt - 1), most))

    return needed
