"""Prompt templates and class names: pure text, no model.

Input: a shipped list of templates or a user's, and a class. Output: prompts, or what the class lacks for
them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from augbench.config.methods import TEMPLATE_SETS, Prompting
from augbench.data.classes import ClassInfo
from augbench.errors import UserError
from augbench.files import RESOURCES

PROMPTS = RESOURCES / "prompts"
PLACEHOLDERS = ("", "hypernyms", "definition", "scene")
CLASSES_NAMED = 3  # number of classes that an error about many classes names


@cache
def load_templates(name: str) -> tuple[str, ...]:
    """Load the templates of a shipped list or of a user's text file, in the file's order.

    A template has ``{}`` where the class's name goes. It may have ``{hypernyms}``, ``{definition}`` and
    ``{scene}``. ``{{`` and ``}}`` stand for braces. Empty lines of a user's file are skipped; for the
    empty prompt, use the shipped list ``empty``.

    Parameters
    ----------
    name : str
        ``simple`` (1 template), ``clip`` (80), ``textual_inversion`` (27), ``sariyildiz`` (6; paper,
        section 3.1), ``empty`` (1), or the path of a UTF-8 text file with one template per line.

    Raises
    ------
    UserError
        The file is missing or has no template, or a line is not a valid template; the error names file
        and line.
    """
    if name in TEMPLATE_SETS:
        return tuple((PROMPTS / f"{name}.txt").read_text(encoding="utf-8").splitlines())
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"not readable as text ({error})"
        raise UserError(
            "templates",
            f"{name!r}, {why}",
            f"allowed: {', '.join(TEMPLATE_SETS)} or a text file with one template per line",
        ) from None
    templates = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, template in templates:
        _check_template(template, f"{name}, line {number}")
    if not templates:
        raise UserError(name, "no template", "one template per line is needed, for example: a photo of a {}")
    return tuple(template for _, template in templates)


def _check_template(template: str, where: str) -> None:
    optional = ", ".join(f"{{{word}}}" for word in PLACEHOLDERS if word)
    allowed = f"allowed: {{}} for the class's name, which each template needs, and {optional}"
    try:
        parsed = [
            (field, spec, conversion)
            for _, field, spec, conversion in string.Formatter().parse(template)
            if field is not None
        ]
    except ValueError as error:
        raise UserError(where, f"{template!r} ({error})", allowed) from None
    for field, spec, conversion in parsed:
        if field not in PLACEHOLDERS or spec or conversion:
            shown = (
                "{" + field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            )
            raise UserError(where, f"unknown placeholder {shown} in {template!r}", allowed)
    if "" not in placeholders_of(template):
        raise UserError(where, f"no {{}} in {template!r}", allowed)


def placeholders_of(template: str) -> frozenset[str]:
    """Placeholders in a template, some of :data:`PLACEHOLDERS`; the class's name is ``""``."""
    return frozenset(field for _, field, _, _ in string.Formatter().parse(template) if field is not None)


def missing(template: str, info: ClassInfo) -> list[str]:
    """Those of hypernyms and definition that the template asks for and the class does not have."""
    return [
        word
        for word in ("hypernyms", "definition")
        if word in placeholders_of(template) and not getattr(info, word)
    ]


def fill(template: str, name: str, info: ClassInfo, scene: str = "") -> str:
    """Fill a template; returns the prompt.

    Parameters
    ----------
    name : str
        Text for the class: its lemmas, the same without white space, or the placeholder of a pseudo-word.
    info : ClassInfo
        The class; several hypernyms are joined by ", ", as lemmas are.
    scene : str
        One of :func:`load_scenes`; needed by templates with ``{scene}``.

    Raises
    ------
    UserError
        The class has no hypernyms or no definition, and the template asks for them.
    ValueError
        No scene was given, and the template asks for one.
    """
    if lacks := missing(template, info):
        raise UserError(
            f"class {info.class_id!r}",
            f"no {' and no '.join(lacks)}",
            f"the template {template!r} needs them: give them in the class table",
        )
    if not scene and "scene" in placeholders_of(template):
        raise ValueError(f"{template!r} needs a scene")
    return template.format(name, hypernyms=", ".join(info.hypernyms), definition=info.definition, scene=scene)


def check_prompting(classes: Sequence[ClassInfo], prompting: Prompting, key: str) -> list[UserError]:
    """Problems with filling the templates for these classes.

    Parameters
    ----------
    key : str
        The config key of ``prompting``, for example ``methods.clip_prompts.prompt``.

    Returns
    -------
    list of UserError
        Bad templates; or one error for missing hypernyms and one for missing definitions, which name the
        classes.
    """
    try:
        templates = load_templates(prompting.templates)
    except UserError as error:
        where = f"{key}.{error.where}" if error.where == "templates" else error.where
        return [UserError(where, error.found, error.allowed)]
    problems = []
    for word in ("hypernyms", "definition"):
        without = [
            info.class_id
            for info in classes
            if any(word in missing(template, info) for template in templates)
        ]
        if without:
            more = f" and {len(without) - CLASSES_NAMED} more" if len(without) > CLASSES_NAMED else ""
            named = ", ".join(map(repr, without[:CLASSES_NAMED])) + more
            noun = "class" if len(without) == 1 else "classes"
            found = f"no {word} of {noun} {named}, which templates {prompting.templates!r} need"
            remedy = f"give {word} in a class table (dataset.classes), or choose other templates"
            problems.append(UserError(key, found, remedy))
    return problems


@cache
def load_scenes() -> tuple[str, ...]:
    """Load the 365 scene categories of Places365 as readable text ("bazaar indoor")."""
    lines = (PROMPTS / "places365.txt").read_text(encoding="utf-8").splitlines()
    return tuple(re.sub(r"[_/]", " ", line) for line in lines)


def strip_whitespace(name: str) -> str:
    """Remove all white space, as the paper's w(n) does ("desktop computer" -> "desktopcomputer").

    The paper does not say what happens to the ", " between lemmas. Read literally, the comma stays
    ("tiger shark, Galeocerdo cuvieri" -> "tigershark,Galeocerdocuvieri"; paper, section 3.1).
    """
    return re.sub(r"\s+", "", name)
