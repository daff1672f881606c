"""Lists of images that may be downloaded or must not be used, and the files of the corpus that needs them."""

from __future__ import annotations

import copy
import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SMALL_STUDY
from PIL import Image
from safetensors.numpy import save_file
from test_retrieval import ListOrigin, neighbours_of

from augbench.artifacts.store import Store
from augbench.commands.check.files import check_files
from augbench.config.methods import RetrieveMethod
from augbench.config.problems import ConfigError
from augbench.config.stages import Retrieval
from augbench.config.study import Study, parse_study
from augbench.errors import UserError
from augbench.personalise.groups import Learned
from augbench.personalise.stage import read_metadata, write_vectors
from augbench.plan.recipes import config_recipe, search_recipe
from augbench.retrieval import lists as image_lists
from augbench.retrieval.embedding_files import open_embeddings
from augbench.retrieval.fetch import fetch_file
from augbench.retrieval.filters import Filters
from augbench.retrieval.hunt import LEDGER, Hunt, hunt_all
from augbench.retrieval.images import WebOrigin, open_origin
from augbench.retrieval.lists import Lists, addresses, list_problems, purge, read_lists
from augbench.retrieval.neighbours import Neighbour
from augbench.retrieval.stage import _Retrieval
from augbench.retrieval.web.cache import Cache, Fetched
from augbench.runtime.job import Job

CLICKHOUSE: dict[str, Any] = {  # the schema that ClickHouse publishes for its subset of LAION-5B
    "id": pa.array([0, 1], pa.uint32()),
    "image_path": ["00000/1", "00000/2"],
    "caption": ["a cat", "a dog"],
    "NSFW": ["UNLIKELY", None],
    "similarity": pa.array([0.3, 0.31], pa.float32()),
    "LICENSE": ["?", None],
    "url": ["http://a/cat.jpg", "http://a/dog.jpg"],
    "key": ["1", "2"],
    "status": ["success", "success"],
    "width": pa.array([224, 224], pa.int32()),
    "height": pa.array([224, 224], pa.int32()),
    "original_width": pa.array([640, 800], pa.int32()),
    "original_height": pa.array([480, 600], pa.int32()),
    "exif": ["{}", None],
    "md5": ["aa", "bb"],
    "vector": pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.float32())),
}


def corpus_of(folder: Path, columns: Sequence[str] = tuple(CLICKHOUSE), name: str = "part.parquet") -> Path:
    folder.mkdir()
    pq.write_table(pa.table({column: CLICKHOUSE[column] for column in columns}), folder / name)
    return folder


def study_of(folder: Path, corpus: dict[str, Any] | None = None, **retrieval: Any) -> Study:
    config = copy.deepcopy(SMALL_STUDY)
    clip = config["clip"]["model"]
    config["corpus"] = {"kind": "embeddings", "folder": str(folder), "clip": clip, **(corpus or {})}
    config["methods"] = {"none": {"mechanism": "real"}, "retrieval": {"mechanism": "retrieve"}}
    config["retrieval"] = retrieval
    return parse_study(config)


def problems(study: Study) -> list[str]:
    return [str(problem) for problem in list_problems(study)]


def test_the_public_subset_is_read_as_it_is_published(tmp_path: Path) -> None:
    (file,) = open_embeddings(corpus_of(tmp_path / "laion"), "vector")
    assert file.metadata(np.array([1])).to_pylist() == [
        {
            "id": "1",
            "url": "http://a/dog.jpg",
            "caption": "a dog",
            "width": 800,
            "height": 600,
            "nsfw": None,
            "punsafe": None,
            "aesthetic": None,
            "hash": "bb",
        }
    ]


# --- safe lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "folder", "name"),
    [
        (tuple(CLICKHOUSE), "corpus", "part.parquet"),
        (("url", "NSFW", "original_width", "vector"), "corpus", "part.parquet"),
        (("url", "vector"), "corpus", "laion5b_100m_part_1_of_10.parquet"),
        (("url", "vector"), "corpus", "LAION400M_part_0.parquet"),
    ],
)
def test_a_laion_list_from_before_relaion_is_not_downloaded_without_a_safe_list(
    tmp_path: Path, columns: Sequence[str], folder: str, name: str
) -> None:
    corpus = corpus_of(tmp_path / folder, columns, name)
    study = study_of(corpus)
    message = (
        r"retrieval\.safe_list: null, but the corpus is a LAION list from before Re-LAION-5B \(.*\); no image"
    )
    with pytest.raises(UserError, match=message) as error:
        open_origin(Job(study, Store(tmp_path / "store"), 1), "retrieval", [])
    assert "\n" not in str(error.value) and "download_without_safe_list is true" in str(error.value)
    assert problems(study) == [str(error.value)]
    assert problems(study_of(corpus, download_without_safe_list=True)) == []


@pytest.mark.parametrize(
    ("columns", "folder"),
    [
        (("url", "vector"), "corpus"),
        (("url", "NSFW", "vector"), "corpus"),
        (("url", "vector"), "laion"),
        (("id", "url", "original_width", "vector"), "corpus"),
    ],
)
def test_other_corpora_need_no_safe_list(tmp_path: Path, columns: Sequence[str], folder: str) -> None:
    corpus = corpus_of(tmp_path / folder, columns, "relaion2B-en-research-safe_part_0.parquet")
    assert problems(study_of(corpus)) == []


def test_files_of_laion_that_are_still_to_be_fetched_need_a_safe_list_too(tmp_path: Path) -> None:
    address = "https://a/laion5b_100m_part_1_of_10.parquet"
    (message,) = problems(study_of(tmp_path / "corpus", {"fetch": [address]}))
    assert "(laion5b_100m_part_1_of_10.parquet)" in message


def test_the_metadata_of_an_index_and_the_name_of_a_servers_index_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    table = pa.table({name: CLICKHOUSE[name] for name in ("url", "NSFW", "LICENSE")})
    pq.write_table(table, tmp_path / "metadata/metadata_0.parquet")
    (tmp_path / "metadata/._metadata_0.parquet").write_bytes(b"macOS")
    index = study_of(tmp_path, {"kind": "clip_retrieval_index"})
    assert "columns NSFW, LICENSE in metadata_0.parquet" in problems(index)[0]
    for name, count in (("laion5B-L-14", 1), ("relaion", 0), ("mine", 0)):
        config = {"kind": "clip_retrieval_server", "url": "http://localhost/knn-service", "index": name}
        study = study_of(tmp_path, {}).model_copy(
            update={"corpus": parse_server({**config, "clip": SMALL_STUDY["clip"]["model"]})}
        )
        assert len(problems(study)) == count


def parse_server(corpus: dict[str, Any]) -> Any:
    config = copy.deepcopy(SMALL_STUDY)
    config["corpus"] = corpus
    config["methods"] = {"none": {"mechanism": "real"}, "retrieval": {"mechanism": "retrieve"}}
    return parse_study(config).corpus


def candidates() -> list[Neighbour]:
    """Images 0 to 5 at u0 to u5, whose hashes in the corpus are h0 to h5."""
    return neighbours_of(6, hash={i: f"h{i}" for i in range(6)})


def text(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def parquet(path: Path, **columns: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def lists_of(folder: Path, **settings: str) -> Lists:
    """What lists say about the candidates."""
    rows = [{"id": row.id, "url": row.url, "hash": row.hash} for row in candidates()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "neighbours")
    return read_lists(Retrieval(**settings), folder / "neighbours", Store(folder / "store"))


def listed(safe_list: str) -> list[str]:
    lists = lists_of(Path(safe_list).parent, safe_list=safe_list)
    fates = {row.id: lists.fate(row) for row in candidates()}
    assert set(fates.values()) <= {None, "not on the safe list"}
    return [id_ for id_, fate in fates.items() if fate is None]


def test_a_safe_list_may_give_addresses_hashes_or_ids(tmp_path: Path) -> None:
    assert listed(text(tmp_path / "list.txt", "u1", " u3 ", "", "h4", "other")) == ["1", "3", "4"]
    assert listed(parquet(tmp_path / "a.parquet", URL=["u1", None, "x"], TEXT=["u2", "u2", "u2"])) == ["1"]
    assert listed(parquet(tmp_path / "b.parquet", md5=["h2"])) == ["2"]
    assert listed(parquet(tmp_path / "c.parquet", SAMPLE_ID=[5, 9])) == ["5"]
    both = tmp_path / "both"
    parquet(both / "part-0.parquet", url=["u0"])
    text(both / "more.txt", "u5")
    (both / "._part-0.parquet").write_bytes(b"macOS")
    assert listed(str(both)) == ["0", "5"]


def test_a_safe_list_is_read_once_for_all_jobs_of_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe_list = text(tmp_path / "list", "u1")
    first = lists_of(tmp_path, safe_list=safe_list)
    monkeypatch.setattr(image_lists, "entries", lambda *_: pytest.fail("the list was read again"))
    assert lists_of(tmp_path, safe_list=safe_list).safe == first.safe == {"u1"}
    monkeypatch.undo()
    assert listed(text(tmp_path / "list", "u1", "u2")) == ["1", "2"]  # the list was changed


def test_ids_of_a_list_with_addresses_do_not_count(tmp_path: Path) -> None:
    assert listed(parquet(tmp_path / "a.parquet", id=[0, 1, 2], url=["x", "u1", "y"])) == ["1"]


def hunted(lists: Lists, wanted: int = 6) -> tuple[list[str], list[int]]:
    """Fates of the candidates, and the numbers of images asked for in each round."""
    method, origin = RetrieveMethod(mechanism="retrieve"), ListOrigin()
    hunt, filters = Hunt("c", candidates(), wanted, [6]), Filters(method, lists=lists)
    hunt_all([hunt], filters, origin, lambda images: [False] * len(images))
    return [row["fate"] for row in hunt.ledger(filters)], origin.asked


def test_what_is_not_listed_is_never_asked_for_and_stands_in_the_ledger(tmp_path: Path) -> None:
    fates, asked = hunted(lists_of(tmp_path, safe_list=text(tmp_path / "l", "u1", "u4")))
    unlisted = "not on the safe list"
    assert fates == [unlisted, "kept", unlisted, unlisted, "kept", unlisted] and asked == [2]


def test_the_duplicate_of_an_unlisted_image_may_be_kept() -> None:
    rows = neighbours_of(3, twins=frozenset({1}))
    filters = Filters(RetrieveMethod(mechanism="retrieve"), lists=Lists(safe=frozenset({"u1", "u2"})))
    assert filters.fates(rows) == ["not on the safe list", "kept", "kept"]


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text(""), "has no entry"),
        (lambda path: path.write_text("\n \n"), "has no entry"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is not readable"),
        (lambda path: path.mkdir(), "has no entry"),
    ],
)
@pytest.mark.parametrize("key", ["safe_list", "takedown"])
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, write: Any, found: str, key: str) -> None:
    write(tmp_path / "list")
    (message,) = problems(study_of(tmp_path / "corpus", **{key: str(tmp_path / "list")}))
    assert re.match(rf"retrieval\.{key}: .*{found}.*; allowed: ", message) and "\n" not in message


def test_a_parquet_list_of_something_else_is_named(tmp_path: Path) -> None:
    other = parquet(tmp_path / "a.parquet", caption=["a"], nsfw=["b"])
    (message,) = problems(study_of(tmp_path, safe_list=other))
    assert "has columns caption, nsfw; one of these is needed: url, URL" in message
    Path(other).write_bytes(b"PAR1")
    assert "is not readable" in problems(study_of(tmp_path, safe_list=other))[0]


def test_settings_of_lists_and_addresses_enter_recipes_only_when_they_are_set(tmp_path: Path) -> None:
    plain, corpus = study_of(tmp_path), {"fetch": ["http://a/part.parquet"]}
    fetching = study_of(tmp_path, corpus)
    assert search_recipe(plain, "retrieval") == search_recipe(fetching, "retrieval")
    assert config_recipe(plain) == config_recipe(fetching)
    assert "fetch" not in config_recipe(plain)["corpus"]
    assert not {"safe_list", "takedown"} & config_recipe(plain)["retrieval"].keys()
    given = config_recipe(study_of(tmp_path, safe_list="list"))["retrieval"]
    assert given["safe_list"] == "list" and "takedown" not in given


# --- takedown ---------------------------------------------------------------------------------------


def test_what_was_taken_down_is_not_asked_for_by_its_address_or_its_hash(tmp_path: Path) -> None:
    takedown = text(tmp_path / "list", "u0", "h2", "4")
    fates, asked = hunted(lists_of(tmp_path, takedown=takedown))
    # the file of image 4 has the hash "4", which is known once it has arrived
    assert fates == ["taken down", "kept", "taken down", "kept", "taken down", "kept"] and asked == [4]


def jpeg(colour: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (64, 64), colour).save(stream, "JPEG")
    return stream.getvalue()


def test_files_that_were_taken_down_are_deleted_from_the_downloads(tmp_path: Path) -> None:
    files = {f"http://a/{colour}.jpg": jpeg(colour) for colour in ("red", "blue", "green")}
    hashes = {url: hashlib.sha256(content).hexdigest() for url, content in files.items()}
    with Cache(tmp_path / "c.sqlite") as cache:
        cache.put(
            [
                (Fetched(url, "fetched", sha256=hashes[url], held=True), content)
                for url, content in files.items()
            ]
        )
    red, blue, green = files
    study = study_of(tmp_path)
    method, settings = study.retrieved["retrieval"], study.retrieval.download
    WebOrigin(tmp_path, method, settings, frozenset({red, hashes[blue]})).close("c")
    with Cache(tmp_path / "c.sqlite") as cache:
        assert [bool(row and row.held) for row in map(cache.get, (red, blue, green))] == [False, False, True]


def test_the_store_loses_every_shard_and_ledger_with_an_image_that_was_taken_down(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept = {"fate": "kept", "class_id": "c"}
    ledgers = {
        "by_hash": [{**kept, "url": "u0", "sha256": "s0"}],
        "by_address": [{**kept, "url": "u1", "sha256": "s1"}, {**kept, "url": "u2", "sha256": "s2"}],
        "dropped": [
            {"fate": "duplicate", "url": "u1", "sha256": None},
            {**kept, "url": "u3", "sha256": "s3"},
        ],
        "other": [{**kept, "url": "u4", "sha256": "s4"}],
    }
    for kind in ("ledgers", "shards"):
        (store.root / kind).mkdir(parents=True)
    for name, rows in ledgers.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER), store.root / f"ledgers/{name}.parquet")
        sources = [row["url"] for row in rows if row["fate"] == "kept"]
        pq.write_table(pa.table({"source": sources}), store.root / f"shards/{name}.parquet")
    generated = pa.table({"source": pa.nulls(2, pa.string())})
    pq.write_table(generated, store.root / "shards/generated.parquet")
    assert purge(store, frozenset()) == 0
    assert purge(store, frozenset({"s0", "u1"})) == 4
    left = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*.parquet")}
    assert left == {
        *("ledgers/dropped.parquet", "ledgers/other.parquet"),
        *("shards/dropped.parquet", "shards/other.parquet", "shards/generated.parquet"),
    }


def write_images(store: Store, name: str, images: list[tuple[str, str, str | None]]) -> None:
    """A shard of (address or name, hash, hash of the image that it started from)."""
    path = store.root / f"shards/{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    sources, hashes, starts = zip(*images, strict=True)
    pq.write_table(
        pa.table({"source": sources, "sha256": hashes, "origin": pa.array(starts, pa.string())}), path
    )


def test_what_is_made_from_a_listed_image_is_deleted_through_any_number_of_steps(tmp_path: Path) -> None:
    """An image was edited, and the edited one again; it is not named by its address there."""
    store = Store(tmp_path / "store")
    write_images(store, "web", [("u0", "h0", None), ("u1", "h1", None)])
    write_images(store, "edited", [("u0", "e0", "h0"), ("u1", "e1", "h1")])
    write_images(store, "a_twice", [("c_000000", "t0", "e0")])
    write_images(store, "twice_of_another", [("c_000001", "t1", "e1")])
    write_images(store, "thrice", [("c_000000", "r0", "t0")])
    assert purge(store, frozenset({"u0"})) == 4
    assert [path.stem for path in (store.root / "shards").glob("*")] == ["twice_of_another"]


def test_what_learned_from_a_listed_image_is_deleted_with_what_its_classes_share(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    write_images(store, "web", [("u0", "h0", None), ("u1", "h1", None)])
    vectors = Learned({"epoch1": torch.ones(1, 4)}, {"epoch1": 1}, 1, ())

    def learn(group: str, class_id: str, sha256: str, shared: str | None = None) -> Path:
        sources = ["train.png", f"added:shards/web/selected/c/0.parquet#0#{sha256}"]
        recipe = {"group": group, "class_id": class_id}
        write = partial(write_vectors, vectors, recipe, sources=sources)
        store.commit("finetune", recipe, ".safetensors", write)
        if shared is not None:
            weights = {"w": np.ones(2, np.float32)}
            of_group = {"group": group, shared: 1}
            store.commit("finetune", of_group, ".safetensors", partial(save_file, weights))
        return store.path("finetune", recipe, ".safetensors")

    gone = [learn("alone", "a", "h0"), learn("all", "a", "h0", "unet_epoch"), learn("all", "b", "h1")]
    gone.append(store.path("finetune", {"group": "all", "unet_epoch": 1}, ".safetensors"))
    stays = [learn("other", "b", "h1"), learn("another", "a", "h1", "adapter_epoch")]
    assert all(path.exists() for path in (*gone, *stays))
    assert read_metadata(gone[0])["learned_images"] == ["h0"]
    assert purge(store, frozenset({"u0"})) == 1 + len(gone)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in stays)


class Shardless(Store):
    def provide(self, *_: Any, **__: Any) -> bool:
        """Make no shard."""
        return False


class Recipeless(_Retrieval):
    def _shard_recipe(self, *_: Any) -> dict[str, Any]:
        return {}


class Known(Hunt):
    fate = ""

    def ledger(self, filters: Filters) -> list[dict[str, Any]]:
        """Two images that are kept, and two others."""
        return [{"class_id": self.class_id, "fate": fate} for fate in ("kept", "kept", self.fate, self.fate)]


def test_a_class_with_fewer_candidates_than_sought_is_tried_again(tmp_path: Path) -> None:
    """Two of four sought candidates are enough images, and too few to choose from."""
    store, study = Shardless(tmp_path / "store"), study_of(tmp_path)
    method = study.retrieved["retrieval"]
    fates = {"found": "not selected", "short": "unsafe: checker"}
    shards = {class_id: str(tmp_path / f"{class_id}.parquet") for class_id in fates}
    ledgers = {class_id: tmp_path / f"ledger_{class_id}.parquet" for class_id in fates}
    job = Job(study, store, 1)
    retrieval = Recipeless(job, "retrieval", method, {}, {}, None, Lists(), {}, shards, ledgers)
    for class_id, fate in fates.items():
        hunt = Known(class_id, [], 2, [4], sought=4)
        hunt.fate = fate
        retrieval.publish(hunt, {"class_id": class_id}, Filters(method))
        assert ledgers[class_id].exists()
    assert store.has("ledgers", {"class_id": "found"}, ".parquet")
    assert not store.has("ledgers", {"class_id": "short"}, ".parquet")


def test_a_class_that_is_kept_is_not_taken_from_the_store_if_the_corpus_hash_is_on_the_list(
    tmp_path: Path,
) -> None:
    store, asked = Store(tmp_path / "store"), {"class_id": "c"}
    rows = [{"id": "0", "url": "u0", "sha256": "s0", "fate": "kept"}]
    ledger = pa.Table.from_pylist(rows, schema=LEDGER)
    store.commit("ledgers", asked, ".parquet", lambda path: pq.write_table(ledger, path))

    class Taken(_Retrieval):
        def _shard_recipe(self, *_: Any) -> dict[str, Any]:
            raise LookupError("the shard is looked for")

    def take(*taken_down: str) -> bool:
        lists, job = Lists(frozenset(taken_down)), Job(study_of(tmp_path), store, 1)
        method = job.study.retrieved["retrieval"]
        retrieval = Taken(job, "retrieval", method, {}, {}, None, lists, {}, {}, {})
        return retrieval.take(Hunt("c", candidates(), 1, [6]), asked)

    assert not take("h0") and not take("u0") and not take("s0")
    with pytest.raises(LookupError):
        take("h1")


def test_the_store_is_searched_for_the_addresses_of_hashes_that_were_taken_down(tmp_path: Path) -> None:
    rows = [{"id": row.id, "url": row.url, "hash": row.hash} for row in candidates()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "new")
    pq.write_table(pa.table({"id": ["0"], "url": ["u0"]}), tmp_path / "of_an_earlier_version")
    paths = [tmp_path / "new", tmp_path / "of_an_earlier_version"]
    assert addresses(paths, frozenset({"h1", "h9", "u3"})) == {"u1"}
    assert addresses(paths, frozenset()) == frozenset()


def test_lists_need_hashes_which_earlier_searches_did_not_keep(tmp_path: Path) -> None:
    plain = search_recipe(study_of(tmp_path), "retrieval")
    for key in ("safe_list", "takedown"):
        assert search_recipe(study_of(tmp_path, **{key: "list"}), "retrieval") == {**plain, "hash": True}


def test_nothing_is_taken_down_by_a_list_of_ids_alone(tmp_path: Path) -> None:
    ids = parquet(tmp_path / "ids.parquet", id=["1"])
    (message,) = problems(study_of(tmp_path, takedown=ids))
    assert "has columns id; one of these is needed: url, URL, image_path, md5, hash, sha256" in message
    assert problems(study_of(tmp_path, safe_list=ids)) == []


# --- the files of a corpus --------------------------------------------------------------------------


class Files(ThreadingHTTPServer):
    """A server of one file, which breaks off after ``most`` bytes of an answer."""

    content = b""
    most = 1 << 40
    resumes = True
    promised: int | None = None
    asked: list[str | None]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/corpus/part_1.parquet?version=2"


class _Answer(BaseHTTPRequestHandler):
    server: Files

    def do_HEAD(self) -> None:
        self.send_response(200)
        size = self.server.promised
        self.send_header("Content-Length", str(len(self.server.content) if size is None else size))
        self.end_headers()

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        start = int(asked[6:-1]) if asked and self.server.resumes else 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.most])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Files]:
    with Files(("127.0.0.1", 0), _Answer) as server:
        server.asked = []
        server.content = (corpus_of(tmp_path / "original") / "part.parquet").read_bytes()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_file_is_fetched_once_and_checked_by_its_size(tmp_path: Path, server: Files) -> None:
    target = tmp_path / "corpus/part_1.parquet"
    fetch_file(server.address, target)
    fetch_file(server.address, target)
    assert target.read_bytes() == server.content and server.asked == [None]
    target.write_bytes(server.content[:-1])
    fetch_file(server.address, target)
    assert target.read_bytes() == server.content and [path.name for path in target.parent.iterdir()] == [
        target.name
    ]


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_download_resumes_where_it_ended(tmp_path: Path, server: Files, resumes: bool) -> None:
    target = tmp_path / "corpus/part_1.parquet"
    server.most, server.resumes = 1000, resumes
    with pytest.raises(UserError, match=r"part_1\.parquet\?version=2: .*; run again to resume"):
        fetch_file(server.address, target)
    assert not target.exists()
    server.most = 1 << 40
    fetch_file(server.address, target)
    assert target.read_bytes() == server.content and server.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize("promised", [10, 10**6])
def test_a_file_of_another_size_than_promised_is_refused(
    tmp_path: Path, server: Files, promised: int
) -> None:
    server.promised = promised
    with pytest.raises(UserError, match=rf"{len(server.content)} bytes arrived, {promised} promised"):
        fetch_file(server.address, tmp_path / "part_1.parquet")
    assert not (tmp_path / "part_1.parquet").exists()


def test_what_is_no_parquet_file_is_refused(tmp_path: Path, server: Files) -> None:
    server.content = b"<html>moved</html>"
    with pytest.raises(UserError, match=r"no whole Parquet file .*; check the address"):
        fetch_file(server.address, tmp_path / "part_1.parquet")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x.parquet", "http://nowhere.invalid/x.parquet"])
def test_a_server_that_does_not_answer_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"x\.parquet: not fetched \(.*\); run again to resume"):
        fetch_file(address, tmp_path / "x.parquet")


def test_a_fetched_file_has_the_last_part_of_its_address_as_name(tmp_path: Path) -> None:
    study = study_of(
        tmp_path, {"fetch": ["https://a/laion-5b/part_1.parquet?x=/y", "https://a/part_2.parquet"]}
    )
    corpus: Any = study.corpus
    assert list(corpus.fetched) == [f"{tmp_path}/part_1.parquet", f"{tmp_path}/part_2.parquet"]


@pytest.mark.parametrize("fetch", [["https://a/x", "https://b/x"], ["https://a/folder/"], ["ftp://a/x"]])
def test_addresses_without_a_file_name_of_their_own_are_refused(tmp_path: Path, fetch: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"corpus.*fetch"):
        study_of(tmp_path, {"fetch": fetch})


def test_a_broken_download_does_not_keep_a_study_from_going_on(tmp_path: Path) -> None:
    folder, part = tmp_path / "corpus", "http://a/{}.parquet"
    folder.mkdir()
    (folder / ".part.parquet.part").write_bytes(b"half")
    study = study_of(folder, {"fetch": [part.format("part"), part.format("other")]})
    assert check_files(study, None, [], False).problems == []
    assert check_files(study_of(folder), None, [], False).problems != []
