"""Captions of the miniature web corpus: as varied, vague and wrong as the web's, at configured rates.

The vocabularies cover everything that the methods' prompts use: all prompt templates, hypernyms,
definitions, scene names, and names without white space. In a corpus whose images show attributes
(:mod:`augbench.miniature.corpus.attributes`), no caption states an attribute that its image does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from augbench.data.classes import ClassInfo
from augbench.miniature.corpus.attributes import ATTRIBUTES, COLOURS, scenes_of, templates_stating
from augbench.prompts.templates import load_scenes, load_templates, strip_whitespace

CAPTION_KINDS = ("template", "wordnet", "shop", "hashtags", "unnamed")
CAPTION_TEMPLATES = ("simple", "clip", "textual_inversion")

_SHOP = (
    "{n} size {s}, free shipping",
    "new {n} for sale",
    "buy {n} online - {c}",
    "{c} {n}, worn once",
    "vintage {c} {n}",
    "{n} - {c} - {s}",
    "best price: {n}",
    "our {c} {n} is back in stock",
)
_UNNAMED = (
    "IMG_{d}.jpg",
    "new arrival, now in {c}",
    "summer sale, up to 70% off",
    "free shipping on all orders",
    "product photo {d}",
    "look of the day",
    "size {s}, good condition",
    "untitled",
)
_COLOURS = tuple(colour.name for colour in COLOURS)
_SIZES = ("S", "M", "L", "XL", "36", "38", "40", "42")


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def class_name_variants(info: ClassInfo) -> tuple[str, ...]:
    """Return the names of a class in the corpus: each lemma, all lemmas, and both without white space."""
    forms = [*info.lemmas, info.name, *map(strip_whitespace, info.lemmas), strip_whitespace(info.name)]
    return tuple(dict.fromkeys(forms))


def _templated(info: ClassInfo, rng: np.random.Generator) -> str:
    template = _pick(load_templates(_pick(CAPTION_TEMPLATES, rng)), rng)
    return template.format(_pick(class_name_variants(info), rng))


def _wordnet(info: ClassInfo, rng: np.random.Generator) -> str:
    name = _pick(class_name_variants(info), rng)
    hypernym, scene = _pick(info.hypernyms, rng), _pick(load_scenes(), rng)
    return _pick(load_templates("sariyildiz"), rng).format(
        name, hypernyms=hypernym, definition=info.definition, scene=scene
    )


def _filled(
    forms: Sequence[str], name: str, rng: np.random.Generator, colours: Sequence[str] = _COLOURS
) -> str:
    return _pick(forms, rng).format(
        n=name, c=_pick(colours, rng), s=_pick(_SIZES, rng), d=int(rng.integers(1000, 9999))
    )


def _hashtags(info: ClassInfo, rng: np.random.Generator) -> str:
    names = (*info.lemmas, *info.hypernyms)
    tags = [strip_whitespace(name).replace("/", "").replace(",", "") for name in names]
    tags += ["fashion", "ootd", "style", "sale"]
    order = rng.permutation(len(tags))[: 2 + int(rng.integers(3))]
    named = {0} | set(order.tolist())
    return " ".join(f"#{tags[index]}" for index in sorted(named))


def caption_for(info: ClassInfo, kind: str, rng: np.random.Generator) -> str:
    """Draw a caption of ``kind`` (one of :data:`CAPTION_KINDS`) for an image of the class ``info``."""
    if kind == "template":
        return _templated(info, rng)
    if kind == "wordnet":
        return _wordnet(info, rng)
    if kind == "shop":
        return _filled(_SHOP, _pick(info.lemmas, rng), rng)
    if kind == "hashtags":
        return _hashtags(info, rng)
    if kind == "unnamed":
        return _filled(_UNNAMED, "", rng)
    raise ValueError(f"unknown kind of caption {kind!r}; allowed: {CAPTION_KINDS}")


def truthful_caption(info: ClassInfo, kind: str, attribute: str | None, rng: np.random.Generator) -> str:
    """Draw a caption of ``kind`` that states ``attribute`` and no other one; with None it states none.

    A look is stated by a template that names it, or else at the end; a scene by one of its names; a colour
    before the class's name.

    Parameters
    ----------
    attribute : str, optional
        A key of :data:`augbench.miniature.corpus.attributes.ATTRIBUTES`.
    """
    stated = ATTRIBUTES[attribute] if attribute is not None else None
    look, scene, colour = (
        stated.name if stated is not None and stated.kind == group else None
        for group in ("look", "scene", "colour")
    )
    named = replace(info, lemmas=tuple(f"{colour} {name}" for name in info.lemmas)) if colour else info
    ending = f" inside {_pick(scenes_of(scene), rng)}" if scene else ""
    if kind in ("template", "wordnet"):
        families = CAPTION_TEMPLATES if kind == "template" else ("sariyildiz",)
        stating = [name for name in families if templates_stating(look, name)]
        if stating and look:
            ending = ""
        elif look:
            ending = f", {ATTRIBUTES[look].phrase}"
        template = _pick(templates_stating(look if stating else None, _pick(stating or families, rng)), rng)
        caption = template.format(
            _pick(class_name_variants(named), rng),
            hypernyms=_pick(info.hypernyms, rng),
            definition=info.definition,
        )
        return caption + ending
    if look:
        ending = f", {ATTRIBUTES[look].phrase}"
    if kind == "hashtags":
        return _hashtags(named, rng) + ending
    forms = [form for form in (_SHOP if kind == "shop" else _UNNAMED) if ("{c}" in form) == bool(colour)]
    return _filled(forms, _pick(info.lemmas, rng), rng, [colour] if colour else _COLOURS) + ending
