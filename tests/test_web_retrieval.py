"""Retrieval from the web, end to end: published embeddings, a search, a server with a third of bad images."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, SMALL_STUDY
from hostile_server import PLAIN, HostileServer, hostile_server

from augbench.artifacts.store import Store
from augbench.config.study import parse_study
from augbench.data.classes import load_class_table, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.models.folders import fingerprint
from augbench.prompts.stage import read_prompts, write_prompts
from augbench.retrieval.images import open_origin
from augbench.retrieval.search import questions_of, replay, search
from augbench.retrieval.shortfall import summarise
from augbench.retrieval.stage import retrieve
from augbench.runtime.job import Job

CLASSES = load_class_table("fashion_mnist")
WANTED = 60
CLIP = "resources/mini/clip"


@dataclass(frozen=True)
class Study:
    """A study with a corpus of published embeddings, in its own folder."""

    folder: Path
    config: dict[str, Any]

    @cached_property
    def job(self) -> Job:
        return Job(parse_study(self.config), Store(self.folder / "results/.store"), 1)

    @property
    def class_ids(self) -> list[str]:
        return [info.class_id for info in CLASSES]

    @property
    def sizes(self) -> dict[str, int]:
        return dict.fromkeys(self.class_ids, 8)

    @property
    def train(self) -> Split:
        """A training split of these sizes."""
        class_ids = [class_id for class_id, size in self.sizes.items() for _ in range(size)]
        images = [str(number) for number in range(len(class_ids))]
        return Split(images, class_ids, np.zeros(len(images), np.int32), images)

    def path(self, name: str) -> Path:
        return self.folder / "results" / name

    def prepare(self) -> None:
        """Write the inputs of a search: prompts, fingerprints, the class table."""
        write_json(self.path("clip.json"), fingerprint(CLIP))
        write_json(self.path("diffusion.json"), fingerprint("resources/mini/stable-diffusion"))
        write_class_table(CLASSES, self.path("classes.parquet"))
        write_split(self.train, self.path("train.parquet"))
        write_prompts(
            self.job.study,
            "retrieval",
            CLASSES,
            {class_id: ["x"] * 8 for class_id in self.class_ids},
            self.path("prompts.parquet"),
        )

    def search(self) -> None:
        prompts, clip, out = (
            self.path(name) for name in ("prompts.parquet", "clip.json", "neighbours.parquet")
        )
        method = self.job.study.retrieved["retrieval"]
        if method.manifest is not None:
            replay(method, prompts, clip, out)
        else:
            questions = questions_of(self.job, "retrieval", prompts, self.train, clip)
            search(self.job, "retrieval", clip, None, questions, out)

    def retrieve(self) -> None:
        """Retrieve all classes in one job."""
        targets = [str(self.path(f"shards/{class_id}/0.parquet")) for class_id in self.class_ids]
        retrieve(
            self.job,
            "retrieval",
            self.path("prompts.parquet"),
            self.path("train.parquet"),
            self.path("neighbours.parquet"),
            self.path("clip.json"),
            self.path("diffusion.json"),
            open_origin(self.job, "retrieval", []),
            targets,
            self.ledgers,
        )

    def summarise(self) -> None:
        summarise(
            self.job.study,
            self.class_ids,
            self.sizes,
            {"retrieval": self.ledgers},
            {"retrieval": self.path("neighbours.parquet")},
            {"retrieval": self.path("manifest.parquet")},
            self.path("yield.csv"),
            self.path("excluded.json"),
        )

    @property
    def ledgers(self) -> list[Path]:
        return [self.path(f"ledgers/{class_id}.parquet") for class_id in self.class_ids]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return [row for path in self.ledgers for row in pq.read_table(path).to_pylist()]

    def shard(self, class_id: str) -> pa.Table:
        return pq.read_table(self.path(f"shards/{class_id}/0.parquet"))


def write_corpus(folder: Path, web: HostileServer, queries: np.ndarray) -> None:
    """Write a corpus of all the server's images as one Parquet file.

    Image i is near the query of class i mod 10; a smaller i is nearer.
    """
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(web.count, queries.shape[1]))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    vectors = queries[np.arange(web.count) % len(queries)] + noise * np.linspace(0.2, 1, web.count)[:, None]
    columns = {
        "url": web.urls(),
        "caption": [f"image {i}" for i in range(web.count)],
        "NSFW": ["UNLIKELY"] * web.count,
    }
    folder.mkdir()
    pq.write_table(
        pa.table({**columns, "vector": pa.array(list(vectors.astype(np.float32)))}), folder / "part.parquet"
    )


def study_of(folder: Path, **method: Any) -> Study:
    config = copy.deepcopy(SMALL_STUDY)
    config["dataset"]["classes"] = "fashion_mnist"
    config["corpus"] = {"kind": "embeddings", "folder": str(folder / "corpus"), "clip": CLIP}
    row = {"mechanism": "retrieve", "images_per_class": WANTED, "duplicate_threshold": 0.999, **method}
    config["methods"] = {"none": {"mechanism": "real"}, "retrieval": row}
    # all images are on one host: by default four at a time, of which the bad ones wait for their time limits
    download = {"allow_private": ["127.0.0.1/32"], "timeout": 5.0, "per_host": 64}
    config["retrieval"] = {"download": download}
    return Study(folder, config)


@pytest.fixture
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


@pytest.fixture
def study(tmp_path: Path, in_project: None) -> Study:
    study = study_of(tmp_path)
    study.prepare()
    return study


def queries_of(study: Study) -> np.ndarray:
    from augbench.retrieval.search import embed_queries

    prompts = {
        class_id: str(rows[0]["prompt"])
        for (class_id, _), rows in read_prompts(study.path("prompts.parquet")).items()
    }
    return embed_queries(prompts, {"folder": CLIP}, study.job.study)


@pytest.mark.full
def test_every_class_gets_its_count_from_a_web_of_which_a_third_is_bad(study: Study) -> None:
    with hostile_server(2000, seed=5) as web:
        write_corpus(study.folder / "corpus", web, queries_of(study))
        study.search()
        study.retrieve()
        study.summarise()
        fate_of, stats = web.expected(), web.stats()
    rows = study.ledger
    by_class = Counter(row["class_id"] for row in rows)
    assert set(by_class) == set(study.class_ids)
    for class_id, looked_at in by_class.items():
        assert looked_at == max(row["rank"] for row in rows if row["class_id"] == class_id) + 1, (
            "one row per candidate"
        )
    arrived = [row for row in rows if row["fate"] in ("kept", "not needed", "same file", "unsafe: checker")]
    assert all(fate_of[row["url"]] == "fetched" for row in arrived)
    others = [row for row in rows if row not in arrived]
    assert len(others) > 100 and all(row["fate"] in (fate_of[row["url"]], "duplicate") for row in others)
    short = read_json(study.path("excluded.json"))["short"]
    for class_id in study.class_ids:
        kept = [row for row in rows if row["class_id"] == class_id and row["fate"] == "kept"]
        assert len(kept) == WANTED or class_id in short or len(kept) >= 8
        shard = study.shard(class_id)
        assert shard.column("source").to_pylist() == [row["url"] for row in kept]
        assert shard.column("similarity").to_pylist() == sorted(
            shard.column("similarity").to_pylist(), reverse=True
        )
    assert sum(len(study.shard(class_id)) == WANTED for class_id in study.class_ids) >= 9
    plain = [count for index, count in stats["requests"].items() if web.kind(index) in PLAIN]
    assert len(plain) > 500 and set(plain) == {1}, "nothing is fetched twice, not even for two classes"

    manifest = study.path("manifest.parquet")
    replayed = study_of(study.folder / "replay", manifest=str(manifest))
    replayed.prepare()
    replayed.search()
    with hostile_server(2000, seed=5) as other:  # another port, so that the links of the manifest are dead
        assert other.port != web.port
        replayed.retrieve()
    fates = Counter(row["fate"] for row in replayed.ledger)
    assert set(fates) == {"dead: connection"} and fates.total() == pq.read_table(manifest).num_rows


def test_a_manifest_brings_the_same_images_again(study: Study) -> None:
    with hostile_server(1200, seed=6, kinds=["jpeg", "png", "webp"]) as web:
        write_corpus(study.folder / "corpus", web, queries_of(study))
        study.search()
        study.retrieve()
        study.summarise()
        replayed = study_of(study.folder / "replay", manifest=str(study.path("manifest.parquet")))
        replayed.prepare()
        replayed.search()
        replayed.retrieve()
    for class_id in study.class_ids:
        assert (
            replayed.shard(class_id).column("sha256").to_pylist()
            == study.shard(class_id).column("sha256").to_pylist()
        )
        assert len(study.shard(class_id)) == WANTED


KILLED = """
import json, sys
sys.path[:0] = json.loads(sys.argv[3])
from pathlib import Path
from test_web_retrieval import Study
Study(Path(sys.argv[1]), json.loads(sys.argv[2])).retrieve()
"""


@pytest.mark.full
def test_after_kill_9_at_most_the_images_in_flight_are_fetched_again(study: Study) -> None:
    with hostile_server(1500, seed=7, kinds=["jpeg", "png", "404", "html"]) as web:
        write_corpus(study.folder / "corpus", web, queries_of(study))
        study.search()
        command = [
            sys.executable,
            "-c",
            KILLED,
            str(study.folder),
            json.dumps(study.config),
            json.dumps([str(PROJECT / "tests"), str(PROJECT / "src")]),
        ]
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        while web.stats()["total"] < 300:
            assert process.poll() is None, process.communicate()[1][-2000:]
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        while web.stats()["in_flight"]:
            time.sleep(0.02)
        before = web.stats()["requests"]
        study.retrieve()
        after = web.stats()["requests"]
    again = {index for index in before if after[index] > before[index]}
    assert len(again) <= study.job.study.retrieval.download.concurrency < len(before)
    assert all(len(study.shard(class_id)) == WANTED for class_id in study.class_ids)


def test_poisoned_rows_of_a_corpus_do_no_harm_and_stand_in_the_ledger(study: Study) -> None:
    secret = study.folder / "secret.jpg"
    secret.write_bytes(b"secret")
    with hostile_server(300, seed=8, kinds=["jpeg"]) as web:
        poison = [
            f"file://{secret}",
            "/etc/passwd",
            "../../secret.jpg",
            "http://169.254.169.254/latest",
            "http://10.0.0.1/x.jpg",
            "gopher://x/",
            "",
            "http://",
        ]
        urls = [*poison, *web.urls()[len(poison) :]]
        write_corpus(study.folder / "corpus", web, queries_of(study)[:1])
        table = pq.read_table(study.folder / "corpus/part.parquet")
        table = table.set_column(0, "url", pa.array(urls))
        names = [f"../../{i}" if i % 7 == 0 else f"id{i}" for i in range(300)]
        pq.write_table(table.append_column("id", pa.array(names)), study.folder / "corpus/part.parquet")
        study.search()
        study.retrieve()
    fates = {row["url"]: row["fate"] for row in study.ledger}
    assert {fates[url] for url in poison if url} <= {"refused scheme", "refused address", "bad URL"}
    written = [*study.folder.rglob("*"), *study.folder.parent.iterdir()]
    assert not [path for path in written if path.name.isdigit()], "no file is named by a corpus"
    assert len(study.shard(study.class_ids[0])) == WANTED


def test_a_corpus_of_another_clip_and_a_missing_predictor_are_refused_early(study: Study) -> None:
    other = copy.deepcopy(study.config)
    other["corpus"]["clip"] = "openai/clip-vit-large-patch14"
    with pytest.raises(UserError, match=r"corpus\.clip: .*differs from clip\.model"):
        parse_study(other)
    scored = study_of(study.folder, min_aesthetics=5.0)
    scored.config["retrieval"]["aesthetics_weights"] = None
    with hostile_server(300, seed=8, kinds=["jpeg"]) as web:
        write_corpus(study.folder / "corpus", web, queries_of(study))
        scored.search()
        with pytest.raises(
            UserError, match=r"methods\.retrieval\.min_aesthetics: the corpus has no scores for all images"
        ):
            scored.retrieve()
        assert web.stats()["total"] == 0
