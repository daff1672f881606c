"""What jobs ask of a scheduler: memory, run time, GPUs and the CPUs beside them.

Flows in: what a kind of job needs at its first attempt, and what the profile says of the cluster (``default-resources`` in slurm/config.yaml).
Flows out: values for ``resources:`` and ``threads:`` of the rules, the same for every executor. Each attempt asks for twice as much as the
one before, so that a job that was stopped for its memory or its time gets through; what it had finished comes from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from augbench.config.study import Study
from augbench.errors import UserError, ending_in_one_line
from augbench.plan.uses_network import uses_network

SMALL_RESOLUTION = (
    128  # pixels; models that make smaller images are the miniature's: some MB instead of some GB
)
NOT_GIVEN = ("", "None")
WEB_JOBS = ("nodes", "login")
Resources = dict[str, Any]  # of a rule: plain values, or functions of wildcards and attempt


@dataclass(frozen=True)
class Site:
    """What the rules want to know of the machines; the defaults are for a run without a profile.

    Attributes
    ----------
    gpu_type : str, optional
        Model of GPU to ask for, in the cluster's words; None takes any.
    gpu_partition : str, optional
        Slurm partition of the jobs that use a GPU; None: that of all jobs.
    gpus_per_job : int
        GPUs that a job may use: classifiers train on all of them, other jobs use one; 0 where there are none, and jobs compute on CPUs.
    threads_per_gpu : int
        CPUs of a job that uses GPUs, for each of them; where there are none, of a job that would.
    longest_job : int
        Minutes that no job asks to exceed, however often it is tried.
    largest_job : int
        Memory in MB that no job asks to exceed, likewise.
    web_jobs : str
        Where images are retrieved from the web: ``nodes``, as jobs; ``login``, where Snakemake runs.
    """

    gpu_type: str | None = None
    gpu_partition: str | None = None
    gpus_per_job: int = 1
    threads_per_gpu: int = 1
    longest_job: int = 1440
    largest_job: int = 256_000
    web_jobs: str = "nodes"


def read_site(default_resources: Mapping[str, object]) -> Site:
    """What a profile says of the cluster.

    Parameters
    ----------
    default_resources : mapping
        Values as they stand there; what is of no concern here is passed over, and what is empty counts as not given.

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
    """What the rules of a study ask of a site."""

    study: Study
    site: Site

    def job(self, miniature: int, full: int, minutes: int) -> Resources:
        """Resources of a job without a GPU.

        Parameters
        ----------
        miniature, full : int
            Main memory in MB at the first attempt, for the miniature's models and for full-size ones; doubled with
            each further attempt, up to the site's largest job.
        minutes : int
            Run time at the first attempt; doubled likewise, up to the site's longest job.
        """
        small = self.study.diffusion.resolution < SMALL_RESOLUTION
        return {
            "mem_mb": _growing(miniature if small else full, self.site.largest_job),
            "runtime": _growing(minutes, self.site.longest_job),
        }

    @property
    def light(self) -> Resources:
        """Resources of a job that reads small files and is done in seconds."""
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

    def classifier_job(self, miniature: int, full: int, minutes: int) -> Resources:
        """Resources of a job that trains classifiers on all GPUs that a job may use; parameters as in :meth:`job`."""
        return self._gpus(self.site.gpus_per_job) | self.job(miniature, full, minutes)

    @property
    def gpu_threads(self) -> int:
        """CPUs of a job that uses a GPU."""
        return self.site.threads_per_gpu

    @property
    def classifier_threads(self) -> int:
        """CPUs of a job that trains classifiers."""
        return max(1, self.site.gpus_per_job) * self.site.threads_per_gpu

    @property
    def download_is_local(self) -> bool:
        """Whether the jobs that download images from the web run where Snakemake does."""
        return self.site.web_jobs == "login" and uses_network("retrieve_", self.study)

    @property
    def search_is_local(self) -> bool:
        """Whether the jobs that ask a retrieval server run where Snakemake does."""
        return self.site.web_jobs == "login" and uses_network("search", self.study)

    def _gpus(self, count: int) -> Resources:
        """One task on one node: a job starts further processes itself, and the plugin would start the whole job once per GPU."""
        if not count:
            return {}
        asked: Resources = {"gpu": count, "nodes": 1, "tasks_per_gpu": 0}
        named = {"gpu_model": self.site.gpu_type, "slurm_partition": self.site.gpu_partition}
        return asked | {name: value for name, value in named.items() if value is not None}


def load_needs(study: Study, default_resources: Mapping[str, Any] | None) -> Needs:
    """For the Snakefile: the needs of a study at the site that a profile describes; a problem ends the parse with one clear line.

    Parameters
    ----------
    default_resources : mapping, optional
        Snakemake's, by name: plain values, or objects with the value as it was written in ``raw``.
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
