"""The ``corpus`` section: one class per kind of pre-training corpus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from augbench.config.base import Fraction, Section, key

Search = Literal["exact", "clip_retrieval_index"]
_SEARCH = "How it is searched: exact compares each query with every image, in one pass; clip_retrieval_index builds clip-retrieval's index and asks its service."


class MiniatureCorpus(Section):
    """The miniature web corpus made from Fashion-MNIST's training images."""

    kind: Literal["miniature"]
    search: Search = key("exact", _SEARCH)
    downloads: str = key(
        "results/downloads/fashion_mnist", "Folder that keeps Fashion-MNIST's four published files."
    )
    images: int = key(
        50_000, "Garments in the corpus, disjoint from target and test.", "images", ge=100, le=59_000
    )
    shift: Literal["none", "mild", "strong"] = key("mild", "How far the corpus's style is from the target's.")
    distractors: int = key(5_000, "Images of other kinds.", "images", ge=0)
    wrong_captions: Fraction = key(0.05, "Share of garments whose caption names another class.")
    captions: dict[
        Literal["template", "wordnet", "shop", "hashtags", "unnamed"], Annotated[float, Field(ge=0)]
    ] = key(
        {"template": 0.55, "wordnet": 0.2, "shop": 0.1, "hashtags": 0.05, "unnamed": 0.1},
        "Rates of the kinds of caption; `unnamed` ones do not name the class.",
    )

    @model_validator(mode="after")
    def _some_captions(self) -> MiniatureCorpus:
        if sum(self.captions.values()) <= 0:
            raise ValueError("captions: at least one rate must be above 0")
        return self


class ImageCorpus(Section):
    """A folder of images, searched through the study's CLIP."""

    kind: Literal["image_folder"]
    root: str = key(..., "Folder of the images; folders below it are looked into.")
    search: Search = key("exact", _SEARCH)


class PublishedCorpus(Section):
    """A corpus whose embeddings others have made."""

    clip: str = key(
        ...,
        "CLIP model that the embeddings were made with, written as clip.model is: a query through another model is refused.",
    )


MetadataColumn = Literal["id", "url", "caption", "width", "height", "nsfw", "punsafe", "aesthetic"]


class EmbeddingCorpus(PublishedCorpus):
    """CLIP embeddings on a disk, searched exactly in one pass: clip-retrieval's folders, DataComp's, or Parquet with a column of vectors."""

    kind: Literal["embeddings"]
    folder: str = key(
        ...,
        "Folder with img_emb/*.npy and metadata/*.parquet (clip-retrieval), *.npz and *.parquet of equal names (DataComp), or *.parquet with a column of vectors.",
    )
    vector_column: str | None = key(
        None, "Column of the vectors, where they are in Parquet (LAION-5B's 100-million-row subset: vector)."
    )
    npz_key: str | None = key(
        None, "Name of the image embeddings in .npz files (DataComp: l14_img or b32_img)."
    )
    columns: dict[MetadataColumn, str] = key(
        {}, "Columns of the metadata by our names, where theirs are none of the usual."
    )


class IndexCorpus(PublishedCorpus):
    """An index folder as `clip-retrieval index` makes it, searched through clip-retrieval's own service, in process."""

    kind: Literal["clip_retrieval_index"]
    folder: str = key(..., "Folder with image.index and metadata.")


class ServerCorpus(PublishedCorpus):
    """A server that `clip-retrieval back` runs, anywhere; it gives no embeddings, so duplicates are found after download."""

    kind: Literal["clip_retrieval_server"]
    url: str = key(
        ...,
        "Address of its knn-service, for example http://localhost:1234/knn-service.",
        pattern="^https?://",
    )
    index: str = key(..., "Name of the index there.")


OwnCorpus = MiniatureCorpus | ImageCorpus
Corpus = Annotated[
    MiniatureCorpus | ImageCorpus | EmbeddingCorpus | IndexCorpus | ServerCorpus, Field(discriminator="kind")
]
