"""The ``corpus`` section: one class per kind of pre-training corpus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from augbench.config.base import Fraction, Place, Positive, Section, key
from augbench.config.clips import clip_name

Search = Literal["exact", "clip_retrieval_index"]
_SEARCH = (
    "Search: exact compares each query with every image, in one pass; clip_retrieval_index builds an index "
    "with clip-retrieval and searches it through clip-retrieval's service."
)


class MiniatureCorpus(Section):
    """The miniature web corpus, made from Fashion-MNIST's training images."""

    kind: Literal["miniature"]
    search: Search = key("exact", _SEARCH)
    downloads: Place = key(
        "results/downloads/fashion_mnist",
        "Folder that keeps Fashion-MNIST's four published files. If the data set is Fashion-MNIST, "
        "dataset.downloads must name the same folder.",
    )
    images: int = key(
        50_000,
        "Garment images in the corpus; none of them is in the target's pool or test split.",
        "images",
        ge=100,
        le=59_000,
    )
    shift: Literal["none", "mild", "strong"] = key(
        "mild",
        "Strength of the changes that separate the corpus's style from the target's: rotation, tint, "
        "background, blur and others.",
    )
    distractors: int = key(
        5_000,
        "Images without garments in the corpus: text, numbers, textures, photographs and warning signs.",
        "images",
        ge=0,
    )
    wrong_captions: Fraction = key(0.05, "Share of garment images whose caption names another class.")
    captions: dict[
        Literal["template", "wordnet", "shop", "hashtags", "unnamed"], Annotated[float, Field(ge=0)]
    ] = key(
        {"template": 0.55, "wordnet": 0.2, "shop": 0.1, "hashtags": 0.05, "unnamed": 0.1},
        "Relative frequencies of the kinds of caption; at least one must be above 0. `unnamed` captions do "
        "not name the class.",
    )

    attributes: Fraction = key(
        0.0,
        "Share of garment images that show an attribute which prompts can name: a look (dark, drawing, toy),"
        " a scene or a colour. Above 0, captions state no attribute that is not shown.",
        new=True,
    )
    stated_attributes: Fraction = key(0.85, "Share of the shown attributes that captions state.", new=True)

    @model_validator(mode="after")
    def _some_captions(self) -> MiniatureCorpus:
        if sum(self.captions.values()) <= 0:
            raise ValueError("captions: at least one rate must be above 0")
        return self


class ImageCorpus(Section):
    """A folder of your own images, which the study embeds with its own CLIP model."""

    kind: Literal["image_folder"]
    root: Place = key(..., "Folder of the images; its sub-folders are included.")
    search: Search = key("exact", _SEARCH)


class ParquetCorpus(Section):
    """Parquet files with a column of images, which the study embeds with its own CLIP model.

    They are the files of an export of Hugging Face's ``datasets``, or others with such a column.
    """

    kind: Literal["parquet"]
    root: Place = key(..., "Folder of the Parquet files; its sub-folders are included.")
    search: Search = key("exact", _SEARCH)
    image_column: str = key("image", "Column of the images' files.")
    caption_column: str | None = key(
        None, "Column of the captions, for the ledgers. Default: caption, TEXT or text, if there is one."
    )
    url_column: str | None = key(
        None,
        "Column of the images' addresses, for the ledgers and `retrieval.takedown`. Default: url, URL or "
        "image_path, if there is one.",
    )


class PublishedCorpus(Section):
    """Base of corpora whose embeddings were made elsewhere."""

    clip: Place = key(
        ...,
        "CLIP model that made the embeddings. It must equal clip.model, because queries must go through the "
        "same model.",
    )

    @field_validator("clip")
    @classmethod
    def _names_a_model(cls, clip: str) -> str:
        clip_name(clip)
        return clip


MetadataColumn = Literal["id", "url", "caption", "width", "height", "nsfw", "punsafe", "aesthetic", "hash"]


class EmbeddingCorpus(PublishedCorpus):
    """CLIP embeddings on disk, searched exactly, in one pass.

    The files are those of clip-retrieval, those of DataComp, or Parquet files with a column of vectors.
    """

    kind: Literal["embeddings"]
    folder: Place = key(
        ...,
        "Folder with one of these: img_emb/*.npy and metadata/*.parquet (clip-retrieval); *.npz and "
        "*.parquet with equal names (DataComp); *.parquet with a column of vectors.",
    )
    vector_column: str | None = key(
        None,
        "Column of the vectors in Parquet files (LAION-5B's 100-million-row subset: vector). Default: the "
        "only column of vectors.",
    )
    npz_key: str | None = key(
        None,
        "Name of the image embeddings in .npz files (DataComp: l14_img or b32_img). Default: the only array "
        "whose name ends in _img.",
    )
    columns: dict[MetadataColumn, str] = key(
        {},
        "Columns of the metadata, by the names used here. Default: the names used by LAION, clip-retrieval "
        "and DataComp.",
    )
    fetch: tuple[Annotated[str, Field(pattern="^https?://")], ...] = key(
        (),
        "Web addresses of files that belong into `folder`; those that are missing there are fetched."
        " Default: none.",
    )

    vectors: Positive | None = key(
        None,
        "Number of vectors, which `augbench plan` counts with while the files are not here.",
        "images",
        new=True,
    )

    @property
    def fetched(self) -> dict[str, str]:
        """Web addresses by the path of the file that is fetched from them."""
        return {f"{self.folder}/{url.partition('?')[0].rpartition('/')[2]}": url for url in self.fetch}

    @model_validator(mode="after")
    def _one_file_each(self) -> EmbeddingCorpus:
        if len(self.fetched) < len(self.fetch) or any(path.endswith("/") for path in self.fetched):
            raise ValueError("fetch: each address must end in a file name of its own")
        return self


class IndexCorpus(PublishedCorpus):
    """A folder made by `clip-retrieval index`, searched in-process through clip-retrieval's own service."""

    kind: Literal["clip_retrieval_index"]
    folder: Place = key(..., "Folder that holds image.index and metadata.")


class ServerCorpus(PublishedCorpus):
    """A server that runs `clip-retrieval back`, here or elsewhere.

    It returns no embeddings, so duplicates are found after the images are downloaded.
    """

    kind: Literal["clip_retrieval_server"]
    url: str = key(
        ...,
        "Address of the server's knn-service, for example http://localhost:1234/knn-service.",
        pattern="^https?://",
    )
    index: str = key(..., "Name of the index on the server.")


OwnCorpus = MiniatureCorpus | ImageCorpus | ParquetCorpus
Corpus = Annotated[
    MiniatureCorpus | ImageCorpus | ParquetCorpus | EmbeddingCorpus | IndexCorpus | ServerCorpus,
    Field(discriminator="kind"),
]
