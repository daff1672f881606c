"""Models from a Hub: which files are fetched and checked, never twice, and never online afterwards."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_STUDY, Workspace
from PIL import Image
from safetensors.torch import load_file

from augbench.commands.check.study import check_study
from augbench.config.hub import COMMIT, Expected, HubModel, known_models
from augbench.config.models import Diffusion
from augbench.config.problems import ConfigError
from augbench.config.study import Study, parse_study
from augbench.errors import UserError
from augbench.files import read_json, sha256_file
from augbench.models import fetch as fetching
from augbench.models.fetch import fetch, fetch_weights, git_blob, needed_files
from augbench.models.folders import check_safety, fingerprint, load_pipeline
from augbench.plan.paths import Plan

MINI = Path(__file__).resolve().parents[1] / "resources/mini/stable-diffusion"
REVISION = "0123456789abcdef0123456789abcdef01234567"
UNET = "unet/diffusion_pytorch_model.safetensors"
NOT_NEEDED = (
    "README.md",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/flax_model.msgpack",
    "logo/logo.json",
)


# --- a Hub on this machine ------------------------------------------------------------------------


@dataclass
class Hub:
    """A server of the part of the Hub's protocol that a fetch needs, from a folder per model; it can fail."""

    repositories: dict[str, Path]
    corrupt: set[str] = field(default_factory=set)
    cut_short: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    resumed_at: dict[str, int] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def downloads(self) -> list[str]:
        """Files whose content was requested."""
        return [
            path.split(f"/resolve/{REVISION}/")[1]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        ]

    def content(self, repository: str, name: str) -> bytes:
        """Content to send for a file; a corrupt one has the right length."""
        data = (self.repositories[repository] / name).read_bytes()
        return data[:-1] + bytes([data[-1] ^ 1]) if name in self.corrupt else data

    def describe(self, repository: str) -> dict[str, Any]:
        """Answer of the API: every file with its hash, as published."""
        files = []
        for path in sorted(self.repositories[repository].rglob("*")):
            if path.is_file():
                file: dict[str, Any] = {
                    "rfilename": path.relative_to(self.repositories[repository]).as_posix(),
                    "size": path.stat().st_size,
                }
                file["blobId"] = git_blob(path)
                if is_large(path.name):
                    file |= {
                        "blobId": "0" * 40,
                        "lfs": {"sha256": sha256_file(path), "size": path.stat().st_size, "pointerSize": 134},
                    }
                files.append(file)
        return {"_id": "0", "id": repository, "sha": REVISION, "siblings": files}


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".msgpack"))


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path))
        hub.tokens.add(self.headers.get("Authorization"))
        asked = re.fullmatch(
            r"(?:/api/models)?/([^/]+/[^/]+)/(revision|resolve)/([^/?]+)/?([^?]*)(?:\?.*)?", self.path
        )
        assert asked is not None, self.path
        repository, kind, revision, name = asked.groups()
        if repository not in hub.repositories:
            return self.refuse("RepoNotFound")
        if revision != REVISION:
            return self.refuse("RevisionNotFound")
        if kind == "revision":
            return self.send(
                json.dumps(hub.describe(repository)).encode(), {"Content-Type": "application/json"}, True
            )
        path = hub.repositories[repository] / name
        if not path.is_file():
            return self.refuse("EntryNotFound")
        headers = {"X-Repo-Commit": REVISION}
        if is_large(name):
            headers |= {
                "X-Linked-ETag": f'"{sha256_file(path)}"',
                "X-Linked-Size": str(path.stat().st_size),
                "ETag": '"pointer"',
            }
        else:
            headers |= {"ETag": f'"{git_blob(path)}"'}
        self.send(hub.content(repository, name), headers, send_body, name)

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data: bytes, headers: dict[str, str], send_body: bool, name: str = "") -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.hub.resumed_at[name] = start
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if send_body and name in self.hub.cut_short:
            self.wfile.write(data[start:-1000])
            self.close_connection = True
        elif send_body:
            self.wfile.write(data[start:])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature as if published: with other formats too, and one component with pickled weights only."""
    folder = tmp_path_factory.mktemp("published") / "mini"
    shutil.copytree(MINI, folder)
    checker = folder / "safety_checker/model.safetensors"
    torch.save(load_file(checker), checker.with_name("pytorch_model.bin"))
    checker.unlink()
    for name in NOT_NEEDED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not needed")
    return folder


def serve(repositories: dict[str, Path]) -> tuple[Hub, ThreadingHTTPServer]:
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return hub, server


@pytest.fixture
def hub(published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Use the test's Hub in this process and its children; the user's cache folder is empty."""
    from huggingface_hub import constants

    hub, server = serve({"owner/mini": published})
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.chdir(tmp_path)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirror(published: Path) -> Iterator[Hub]:
    mirror, server = serve({"owner/mini": published})
    yield mirror
    server.shutdown()
    server.server_close()


def mini(
    *mirrors: str, repository: str = "owner/mini", revision: str = REVISION, downloads: str = "downloads"
) -> HubModel:
    return HubModel(repository, revision, mirrors, downloads)


def fetch_fails(*mirrors: str, **changes: str) -> str:
    with pytest.raises(UserError) as caught:
        fetch(mini(*mirrors, **changes), "diffusion")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- fetching -------------------------------------------------------------------------------------


def test_what_loading_needs_is_fetched_and_no_more(hub: Hub, published: Path) -> None:
    fetch(mini(), "diffusion")
    folder = Path("downloads/owner--mini") / REVISION
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {
        path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()
    } - set(NOT_NEEDED)
    assert names == wanted | {"fetched.json"}
    assert "safety_checker/pytorch_model.bin" in names
    record = read_json(folder / "fetched.json")
    assert (record["repository"], record["revision"]) == ("owner/mini", REVISION)
    assert {name: file["sha256"] for name, file in record["files"].items()} == {
        name: sha256_file(published / name) for name in wanted
    }
    assert all(file["checked_against"] == f"the Hub ({hub.url})" for file in record["files"].values())


def test_a_second_fetch_asks_for_nothing(hub: Hub) -> None:
    fetch(mini(), "diffusion")
    hub.requests.clear()
    fetch(mini(), "diffusion")
    assert hub.requests == []


def test_a_fetched_model_samples_with_the_network_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(mini(), "diffusion")

    def refuse(*_: Any) -> None:
        raise OSError("the network is off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    diffusion = Diffusion(
        model="owner/mini",
        revision=REVISION,
        downloads="downloads",
        resolution=32,
        scheduler="ddim",
        dtype="float32",
    )
    pipeline = load_pipeline(diffusion, torch.device("cpu"))
    image = pipeline(
        "a photo of a bag", num_inference_steps=1, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert image.size == (32, 32)


def test_the_fingerprint_names_the_revision_and_refuses_what_changed_since(hub: Hub) -> None:
    fetch(mini(), "diffusion")
    found = fingerprint(mini().folder)
    assert (found["repository"], found["revision"]) == ("owner/mini", REVISION)
    assert "fetched.json" not in found["files"]
    path = Path(mini().folder) / UNET
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(
        UserError,
        match=rf"{UNET}: SHA-256 {sha256_file(path)}, fetched with {found['files'][UNET]}; delete "
        rf"{mini().marker} and run again",
    ):
        fingerprint(mini().folder)


def test_a_model_that_was_deleted_is_said_to_be_gone(hub: Hub) -> None:
    gone = Diffusion(model="owner/mini", revision=REVISION, downloads="downloads")
    with pytest.raises(
        UserError,
        match=f"downloads/owner--mini/{REVISION}: no such folder; put the model back, or fetch it again",
    ):
        load_pipeline(gone, torch.device("cpu"))


def test_a_download_that_broke_off_is_gone_on_with(hub: Hub, published: Path) -> None:
    large = "text_encoder/model.safetensors"
    hub.cut_short.add(large)
    said = fetch_fails()
    assert (
        said.startswith(f"downloads/owner--mini/{REVISION}/{large}: no intact copy found")
        and "run again to resume" in said
    )
    assert not Path(mini().marker).exists()
    before = set(hub.downloads())
    hub.requests.clear()
    hub.cut_short.clear()
    hub.resumed_at.clear()
    fetch(mini(), "diffusion")
    assert hub.resumed_at == {large: 10 * 2**20}  # the Hub's library writes chunks of 10 MiB
    assert set(hub.downloads()) & before == {large}
    assert (Path(mini().folder) / large).read_bytes() == (published / large).read_bytes()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (UNET, "SHA-256"),
        ("safety_checker/pytorch_model.bin", "SHA-256"),
        ("unet/config.json", "git blob"),
        ("model_index.json", "git blob"),
    ],
)
def test_a_corrupt_file_is_named_with_what_was_expected_and_deleted(
    hub: Hub, published: Path, name: str, kind: str
) -> None:
    hub.corrupt.add(name)
    said = fetch_fails()
    data = hub.content("owner/mini", name)
    found = (
        hashlib.sha256(data).hexdigest()
        if kind == "SHA-256"
        else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )
    expected = sha256_file(published / name) if kind == "SHA-256" else git_blob(published / name)
    assert f"{REVISION}/{name}: no intact copy found" in said
    assert f"{kind} {found}, expected {expected}" in said
    assert not (Path(mini().folder) / name).exists()
    assert not Path(mini().marker).exists()
    hub.corrupt.clear()
    fetch(mini(), "diffusion")
    assert hub.downloads().count("vae/config.json") == 1
    assert (Path(mini().folder) / name).read_bytes() == (published / name).read_bytes()


def test_a_file_that_was_damaged_while_unfinished_is_fetched_again(hub: Hub, published: Path) -> None:
    fetch(mini(), "diffusion")
    Path(mini().marker).unlink()
    (Path(mini().folder) / UNET).write_bytes(b"half")
    hub.requests.clear()
    fetch(mini(), "diffusion")
    assert hub.downloads() == [UNET]
    assert (Path(mini().folder) / UNET).read_bytes() == (published / UNET).read_bytes()


def test_a_removed_file_is_noticed_though_the_fetch_was_finished(hub: Hub) -> None:
    fetch(mini(), "diffusion")
    (Path(mini().folder) / "vae/config.json").unlink()
    hub.requests.clear()
    fetch(mini(), "diffusion")
    assert hub.downloads() == ["vae/config.json"]


def test_unknown_models_and_revisions_are_named(hub: Hub) -> None:
    said = fetch_fails(revision="f" * 40)
    assert said.startswith(
        f"owner/mini: revision {'f' * 40} is not available "
        f"(the Hub ({hub.url}): no such revision there); check the revision"
    )
    assert "no such model there" in fetch_fails(repository="owner/gone")


def test_another_pipeline_is_refused_before_its_weights_are_fetched(
    hub: Hub, published: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(published, other)
    (other / "model_index.json").write_text(
        json.dumps({**read_json(other / "model_index.json"), "_class_name": "FluxPipeline"})
    )
    hub.repositories["owner/flux"] = other
    assert fetch_fails(repository="owner/flux") == (
        "owner/flux: a FluxPipeline, not a StableDiffusionPipeline; "
        "set `pipeline: FluxPipeline` beside the model, for its defaults"
    )
    assert hub.downloads() == ["model_index.json"]


def test_a_full_disk_is_said_before_anything_large_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert "0.0 GB free; the model needs 0.0 GB; set downloads" in fetch_fails()
    assert UNET not in hub.downloads()


# --- mirrors --------------------------------------------------------------------------------------


def test_a_mirror_is_asked_first_and_judged_by_what_the_hub_says(
    hub: Hub, mirror: Hub, published: Path
) -> None:
    mirror.corrupt.add(UNET)
    fetch(mini(mirror.url), "diffusion")
    assert set(hub.downloads()) == {UNET}
    record = read_json(mini().marker)["files"]
    assert record[UNET]["from"] == f"the Hub ({hub.url})" and record["vae/config.json"]["from"] == mirror.url
    assert (Path(mini().folder) / UNET).read_bytes() == (published / UNET).read_bytes()


def test_a_mirror_stands_for_a_hub_that_has_the_model_no_more(hub: Hub, mirror: Hub) -> None:
    hub.repositories.clear()
    fetch(mini(mirror.url), "diffusion")
    assert {file["checked_against"] for file in read_json(mini().marker)["files"].values()} == {mirror.url}


def test_the_access_token_is_shown_to_the_hub_alone(
    hub: Hub, mirror: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    mirror.corrupt.add(UNET)
    fetch(mini(mirror.url), "diffusion")
    assert mirror.tokens == {None}
    assert "Bearer hf_secret" in hub.tokens


@pytest.mark.parametrize("layout", ["fetched", "cache"])
def test_a_folder_is_a_mirror(hub: Hub, published: Path, layout: str) -> None:
    if layout == "fetched":
        fetch(mini(downloads="shared"), "diffusion")
    else:
        snapshot, blobs = (
            Path("shared/models--owner--mini/snapshots") / REVISION,
            Path("shared/models--owner--mini/blobs"),
        )
        for file in hub.describe("owner/mini")["siblings"]:
            blob = blobs / (file.get("lfs", {}).get("sha256") or file["blobId"])
            link = snapshot / file["rfilename"]
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(published / file["rfilename"], blob)
            link.symlink_to(blob.absolute())
    hub.repositories.clear()
    hub.requests.clear()
    fetch(mini("shared"), "diffusion")
    assert hub.downloads() == []
    assert fingerprint(mini().folder)["id"] == fingerprint(published_subset(published))["id"]
    target = Path("shared") / (
        f"owner--mini/{REVISION}/{UNET}"
        if layout == "fetched"
        else f"models--owner--mini/snapshots/{REVISION}/{UNET}"
    )
    target.write_bytes(b"\0" * target.stat().st_size)
    assert f"{UNET}: no intact copy found (shared: SHA-256 " in fetch_fails("shared", downloads="elsewhere")


def published_subset(published: Path) -> Path:
    """The published model with only the files that are needed."""
    folder = Path("subset")
    shutil.copytree(published, folder)
    for name in NOT_NEEDED:
        (folder / name).unlink()
    return folder


# --- known models ---------------------------------------------------------------------------------


def test_our_table_outranks_what_a_server_says(
    hub: Hub, mirror: Hub, monkeypatch: pytest.MonkeyPatch, published: Path
) -> None:
    wrong = Expected("our table", (published / UNET).stat().st_size, "ab" * 32)
    monkeypatch.setattr(fetching, "known_models", lambda: {"owner/mini": (REVISION, {UNET: wrong})})
    said = fetch_fails(mirror.url)
    assert said.count(f"expected {'ab' * 32}") == 2
    assert not (Path(mini().folder) / UNET).exists()


def test_the_shipped_tables_are_whole() -> None:
    known = known_models()
    assert {
        "CompVis/stable-diffusion-v1-4",
        "openai/clip-vit-large-patch14",
        "CompVis/stable-diffusion-safety-checker",
    } <= set(known)
    for revision, files in known.values():
        assert re.fullmatch(COMMIT, revision)
        assert all(
            file.size and file.sha256 and re.fullmatch("[0-9a-f]{64}", file.sha256) for file in files.values()
        )
    listed = [
        *known["openai/clip-vit-large-patch14"][1],
        "README.md",
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        ".gitattributes",
    ]
    assert needed_files("clip", listed) == sorted(known["openai/clip-vit-large-patch14"][1])


def test_weights_in_several_files_come_with_their_index() -> None:
    parts = [f"model-0000{i}-of-00002.{kind}" for i in (1, 2) for kind in ("safetensors", "bin")]
    names = [
        *parts,
        "config.json",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "model.fp16.safetensors",
    ]
    assert needed_files("clip", names) == [
        "config.json",
        *(part for part in sorted(parts) if part.endswith("safetensors")),
        "model.safetensors.index.json",
    ]


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"no weights in PyTorch's formats; allowed: a model with \.safetensors or \.bin files",
    ):
        needed_files("clip", ["config.json", "tf_model.h5"])


# --- config ---------------------------------------------------------------------------------------


def study(**diffusion: Any) -> Study:
    return parse_study({**SMALL_STUDY, "diffusion": {**SMALL_STUDY["diffusion"], **diffusion}})


def test_a_known_model_has_its_revision_and_a_folder_of_its_own() -> None:
    plan = Plan(study(model="CompVis/stable-diffusion-v1-4", resolution=512), ())
    folder = (
        "results/downloads/models/CompVis--stable-diffusion-v1-4/133a221b8aa7292a167afc5127cb63fb5005638b"
    )
    assert plan.study.diffusion.folder == folder
    assert plan.diffusion_files == [f"{folder}/fetched.json"]
    assert set(plan.hub_models) == {"diffusion"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"model": "owner/mini", "revision": "main"},
            "diffusion.revision: 'main'; allowed: a commit, 40 hexadecimal digits; a branch or tag may move",
        ),
        (
            {"model": "some/where/else", "revision": REVISION},
            "diffusion.revision: '0123456789abcdef0123456789abcdef01234567'; goes with a model's id",
        ),
        (
            {"safety_checker": "owner/checker", "safety_checker_revision": "v1"},
            "diffusion.safety_checker_revision: 'v1'; allowed: a commit, 40 hexadecimal digits; "
            "a branch or tag may move",
        ),
        (
            {"safety_checker": None, "safety_checker_revision": REVISION},
            "goes with a safety checker's id on the Hub",
        ),
    ],
)
def test_only_commits_of_models_on_the_hub_are_revisions(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        study(**keys)
    assert said in str(caught.value)


def test_an_id_without_a_revision_is_a_folder_and_the_error_says_how_to_make_it_an_id(hub: Hub) -> None:
    assert study(model="owner/mini").diffusion.folder == "owner/mini"
    with pytest.raises(ConfigError) as caught:
        check_study(study(model="owner/mini"))
    assert (
        "diffusion.model: 'owner/mini', no such folder; "
        "allowed: a folder in diffusers' Stable Diffusion layout, or a model's id on the Hub"
    ) in str(caught.value)


def test_check_says_what_will_be_fetched_and_looks_at_it_afterwards(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("classes.yaml").symlink_to(MINI.parents[1] / "classes/fashion_mnist.yaml")
    Path("resources").symlink_to(MINI.parents[1])
    from_hub = study(model="owner/mini", revision=REVISION, downloads="downloads")
    folder = f"downloads/owner--mini/{REVISION}"
    line = f"diffusion.model: owner/mini at {REVISION} will be fetched to {folder} by the first run"
    assert line in check_study(from_hub)
    fetch(mini(), "diffusion")
    assert line not in check_study(from_hub)
    with pytest.raises(ConfigError, match=r"diffusion\.resolution: 64; allowed: 32, the model's own"):
        check_study(study(model="owner/mini", revision=REVISION, downloads="downloads", resolution=64))


# --- safety checker -------------------------------------------------------------------------------


@pytest.fixture
def without_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniature without a safety checker, like a pipeline of the 2.x family."""
    monkeypatch.chdir(tmp_path)
    Path("classes.yaml").symlink_to(MINI.parents[1] / "classes/fashion_mnist.yaml")
    Path("resources").symlink_to(MINI.parents[1])
    shutil.copytree(MINI, "sd2", ignore=shutil.ignore_patterns("safety_checker"))
    index = {
        **read_json("sd2/model_index.json"),
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
    Path("sd2/model_index.json").write_text(json.dumps(index))
    Path("checker").mkdir()
    for path in (*(MINI / "safety_checker").iterdir(), *(MINI / "feature_extractor").iterdir()):
        shutil.copy(path, "checker")
    return tmp_path


def test_a_model_without_a_safety_checker_needs_a_word_about_it(without_checker: Path) -> None:
    said = (
        "diffusion.safety_checker: .*none of its own; "
        "allowed: a folder or Hub id of a safety checker .*, or null to go without"
    )
    with pytest.raises(ConfigError, match=said):
        check_study(study(model="sd2"))
    with pytest.raises(UserError, match=said):
        load_pipeline(study(model="sd2").diffusion, torch.device("cpu"))
    for word in (None, "checker"):
        assert check_study(study(model="sd2", safety_checker=word))


def test_another_safety_checker_stands_for_the_models_own(without_checker: Path) -> None:
    own = load_pipeline(study().diffusion, torch.device("cpu"))
    lent = load_pipeline(study(model="sd2", safety_checker="checker").diffusion, torch.device("cpu"))
    assert all(
        torch.equal(a, b)
        for a, b in zip(own.safety_checker.parameters(), lent.safety_checker.parameters(), strict=True)
    )
    picture = Image.effect_noise((32, 32), 50).convert("RGB")
    assert check_safety(own, [picture]) == check_safety(lent, [picture])
    assert lent("a bag", num_inference_steps=1, height=32, width=32).nsfw_content_detected is not None


def test_a_safety_checker_that_is_off_flags_nothing_and_shows_in_the_fingerprint(
    without_checker: Path,
) -> None:
    pipeline = load_pipeline(study(safety_checker=None).diffusion, torch.device("cpu"))
    assert pipeline.safety_checker is None
    assert check_safety(pipeline, [Image.new("RGB", (32, 32))] * 2) == [False, False]
    own, off, lent = (fingerprint(MINI, checker) for checker in ("model", None, "checker"))
    assert len({own["id"], off["id"], lent["id"]}) == 3
    assert fingerprint(MINI)["id"] == own["id"]
    assert not any(name.startswith("safety_checker/") for name in off["files"])


@pytest.mark.parametrize(
    ("missing", "said"),
    [("checker", "no such folder"), ("checker/preprocessor_config.json", "has no preprocessor_config.json")],
)
def test_half_a_safety_checker_is_refused(without_checker: Path, missing: str, said: str) -> None:
    shutil.rmtree(missing) if Path(missing).is_dir() else Path(missing).unlink()
    with pytest.raises(ConfigError, match=f"diffusion.safety_checker: 'checker',? {said}"):
        check_study(study(model="sd2", safety_checker="checker"))


def test_clip_of_another_width_is_accepted_where_the_text_encoder_is_not_openais(
    without_checker: Path,
) -> None:
    config = Path("sd2/text_encoder/config.json")
    shutil.copytree(MINI.parent / "clip", "clip", ignore=shutil.ignore_patterns("*index.json"))
    Path("clip/config.json").write_text(
        json.dumps({"model_type": "clip", "text_config": {"hidden_size": 96}})
    )
    wide = parse_study(
        {
            **SMALL_STUDY,
            "clip": {"model": "clip"},
            "diffusion": {**SMALL_STUDY["diffusion"], "model": "sd2", "safety_checker": None},
        }
    )
    with pytest.raises(ConfigError, match=r"clip\.model: 'clip' has text states of width 96; allowed: 128"):
        check_study(wide)
    config.write_text(json.dumps({**read_json(config), "hidden_act": "gelu"}))
    assert check_study(wide)


# --- Inception-v3 ---------------------------------------------------------------------------------


def test_published_weights_are_fetched_once_and_checked(tmp_path: Path) -> None:
    source, wrong, target = (
        tmp_path / "source.pth",
        tmp_path / "wrong.pth",
        tmp_path / "downloads/weights.pth",
    )
    source.write_bytes(b"weights")
    wrong.write_bytes(b"others")
    digits = sha256_file(source)[:8]
    with pytest.raises(
        UserError, match=rf"weights\.pth: no intact copy found .*expected \"{digits}\".*begins with {digits}"
    ):
        fetch_weights(target, [str(tmp_path / "nowhere.pth"), str(wrong)], digits)
    assert not target.exists()
    fetch_weights(target, [str(wrong), source.as_uri()], digits)
    assert target.read_bytes() == b"weights"
    fetch_weights(target, [], digits)
    target.write_bytes(b"damaged")
    fetch_weights(target, [str(source)], digits)
    assert target.read_bytes() == b"weights"


def test_the_address_is_torchvisions() -> None:
    from torchvision.models import Inception_V3_Weights

    assert fetching.INCEPTION_URL == Inception_V3_Weights.IMAGENET1K_V1.url
    assert fetching.INCEPTION_SHA256 in fetching.INCEPTION_URL


# --- the workflow ---------------------------------------------------------------------------------


@pytest.mark.full
def test_the_workflow_fetches_once_and_hashes_what_it_fetched(
    hub: Hub, workspace: Workspace, published: Path
) -> None:
    models = {"model": "owner/mini", "revision": REVISION, "downloads": "models"}
    hub.repositories["owner/checker"] = checker = workspace.folder / "published_checker"
    checker.mkdir()
    for path in (*(MINI / "safety_checker").iterdir(), *(MINI / "feature_extractor").iterdir()):
        shutil.copy(path, checker)
    apart = {"safety_checker": "owner/checker", "safety_checker_revision": REVISION}
    workspace.write_study({**SMALL_STUDY, "diffusion": {**SMALL_STUDY["diffusion"], **models, **apart}})
    target = "results/small/models/diffusion.json"
    assert workspace.plan(target) == {
        "fetch_diffusion": 1,
        "fetch_safety_checker": 1,
        "fingerprint_diffusion": 1,
    }
    workspace.run("--target", target)
    record = read_json(workspace.folder / target)
    assert record["folder"] == f"models/owner--mini/{REVISION}"
    assert record["files"]["safety_checker/model.safetensors"] == sha256_file(
        MINI / "safety_checker/model.safetensors"
    )
    assert "safety_checker/pytorch_model.bin" not in record["files"]
    hub.requests.clear()
    workspace.run("--target", target)
    assert hub.requests == []
