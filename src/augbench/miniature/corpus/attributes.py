"""Attributes that images of the miniature corpus show and captions state: looks, scenes and colours.

The looks are what the words of the prompt templates name ("dark", "drawing", "toy"), the scenes stand for the
365 scene names, the colours for those of shop captions. Each attribute is never shown on the garments of one
class, so that combinations that no caption has are left to be measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from augbench.prompts.templates import load_scenes, load_templates

Kind = Literal["look", "scene", "colour"]
TEMPLATE_SETS = ("clip", "textual_inversion", "sariyildiz")
WEIGHTS: dict[Kind, float] = {"look": 1.0, "scene": 0.75, "colour": 0.6}  # how often, relative to each other


@dataclass(frozen=True)
class Attribute:
    """Something that an image shows and a caption can state.

    Attributes
    ----------
    name : str
        Its name, which is also its column in the corpus.
    words : tuple of str
        Words that state it: in templates (looks), in scene names (scenes), in captions (colours).
    phrase : str
        How captions that follow no template state a look ("dark photo"), and how CLIP is asked for any
        attribute.
    """

    name: str
    kind: Kind
    words: tuple[str, ...]
    phrase: str


def _look(name: str, phrase: str, *words: str) -> Attribute:
    return Attribute(name, "look", words or (name,), phrase)


LOOKS = (
    _look("black and white", "black and white photo"),
    _look("dark", "dark photo"),
    _look("bright", "bright photo"),
    _look("blurry", "blurry photo"),
    _look("close-up", "close-up photo"),
    _look("cropped", "cropped photo"),
    _look("many", "photo of many", "many", "multiple"),
    _look("large", "large"),
    _look("small", "small"),
    _look("weird", "weird"),
    _look("hard to see", "hard to see"),
    _look("pixelated", "pixelated photo, low resolution", "pixelated", "low resolution"),
    _look("jpeg corrupted", "jpeg corrupted photo"),
    _look("bad", "bad photo"),
    _look("drawing", "drawing, sketch", "drawing", "sketch", "doodle"),
    _look("painting", "painting, art", "painting", "art"),
    _look("graffiti", "graffiti"),
    _look("tattoo", "tattoo"),
    _look("cartoon", "cartoon"),
    _look("video game", "video game"),
    _look("rendering", "rendering", "rendering", "rendition"),
    _look("sculpture", "sculpture"),
    _look("embroidered", "embroidered"),
    _look("origami", "origami"),
    _look("plushie", "plushie"),
    _look("plastic", "plastic toy", "plastic", "toy"),
    _look("dirty", "dirty"),
    _look("clean", "clean"),
)
_COLOURS = ("black", "white", "grey", "red", "blue", "green", "brown", "pink", "beige", "striped")
COLOURS = tuple(Attribute(name, "colour", (name,), name) for name in _COLOURS)
# The first kind with one of its words in a scene's name is the scene's; "inside" names the rest.
SCENES = tuple(
    Attribute(name, "scene", tuple(words.split()), phrase)
    for name, phrase, words in (
        ("snow", "in the snow", "snow snowy snowfield ice iceberg glacier ski igloo crevasse tundra"),
        (
            "night",
            "in the dark",
            "catacomb grotto burial mausoleum theater discotheque pub bar stage auditorium jail shaft"
            " basement attic cockpit orchestra vault stable garage subway",
        ),
        (
            "water",
            "at the water",
            "water underwater ocean lake river pond fishpond lagoon aquarium beach coast pool harbor pier"
            " wave waterfall canal raft boat boathouse boardwalk islet swimming watering creek dam fountain"
            " spring jacuzzi aqueduct lighthouse",
        ),
        (
            "desert",
            "in the desert",
            "desert canyon butte badlands sandbox volcano ruin excavation cliff rock trench valley quarry "
            "landfill bullring",
        ),
        (
            "nature",
            "in the garden",
            "forest garden park field farm orchard vineyard pasture lawn yard marsh swamp rainforest"
            " hayfield corn wheat tree playground picnic campsite baseball soccer football golf greenhouse"
            " paddy corral path topiary racecourse hill",
        ),
        ("sky", "under the sky", "sky runway airfield mountain wind windmill tower heliport bridge viaduct"),
        (
            "street",
            "in the street",
            "street downtown highway building skyscraper alley plaza parking gas crosswalk facade outdoor "
            "exterior road driveway promenade slum residential village construction industrial",
        ),
        ("inside", "inside a room", ""),
    )
)
ATTRIBUTES = {attribute.name: attribute for attribute in (*LOOKS, *SCENES, *COLOURS)}


@cache
def look_of(template: str) -> str | None:
    """Name of the look that a prompt template states, or None."""
    for look in LOOKS:
        if any(re.search(rf"\b{re.escape(word)}\b", template) for word in look.words):
            return look.name
    return None


@cache
def templates_stating(look: str | None, templates: str) -> tuple[str, ...]:
    """Templates of a set that state a look; with None, those that state no look and no scene."""
    return tuple(
        template
        for template in load_templates(templates)
        if look_of(template) == look and (look is not None or "{scene}" not in template)
    )


def kind_of_scene(scene: str) -> str:
    """Name of the kind of scene (one of :data:`SCENES`) that a scene name belongs to."""
    words = set(scene.split())
    return next(kind.name for kind in SCENES if words & set(kind.words) or not kind.words)


@cache
def scenes_of(kind: str) -> tuple[str, ...]:
    """Scene names of a kind."""
    return tuple(scene for scene in load_scenes() if kind_of_scene(scene) == kind)


def held_out_class(attribute: str, classes: int) -> int:
    """Label of the class whose garments never show an attribute."""
    return 7 * list(ATTRIBUTES).index(attribute) % classes


def draw_attribute(label: int, classes: int, share: float, rng: np.random.Generator) -> str | None:
    """Draw what a garment of class ``label`` shows beyond its class: with probability ``share`` an attribute.

    The class that an attribute is held out for shows none in its place.
    """
    shown, place = rng.random() < share, rng.random()
    if not shown:
        return None
    limits = np.cumsum([WEIGHTS[attribute.kind] for attribute in ATTRIBUTES.values()])
    name = list(ATTRIBUTES)[int(np.searchsorted(limits / limits[-1], place, side="right"))]
    return None if held_out_class(name, classes) == label else name
