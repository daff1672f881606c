"""Caltech256 as published (Griffin et al., 2007): ``256_ObjectCategories/001.ak47/*.jpg``.

The clutter folder (257) is not a class. A class's name is its folder's (paper, section 3.2), without the
number and "-101", and with spaces for hyphens.
"""

from __future__ import annotations

import os
import re

from augbench.config.data import Caltech256
from augbench.data.classes import SHIPPED_TABLES, ClassInfo, check_unique, load_class_table
from augbench.data.image_folder import FolderSource
from augbench.errors import UserError, some

CLUTTER = "257.clutter"
FOLDER_PATTERN = r"[0-9]{3}\.[A-Za-z0-9._+-]+"


def class_name(folder: str) -> str:
    """Class name of a folder: "airplanes" for ``251.airplanes-101``."""
    return folder.partition(".")[2].removesuffix("-101").replace("-", " ").strip()


class Caltech256Source(FolderSource):
    """Images in the class folders of ``256_ObjectCategories``; ``class_id`` is the folder's name."""

    def __init__(self, dataset: Caltech256) -> None:
        super().__init__(dataset.root)

    def class_names(self, folder: str) -> list[str]:
        """Names of the class folders, without clutter.

        Raises
        ------
        UserError
            A folder's name is not one of Caltech256's.
        """
        names = [name for name in super().class_names(folder) if name != CLUTTER]
        if bad := [name for name in names if not re.fullmatch(FOLDER_PATTERN, name)]:
            found = f"{str(self.root)!r} has folders that are not Caltech256's: {some(bad)}"
            raise UserError(
                "dataset.root", found, "allowed: folders such as 001.ak47; the root is 256_ObjectCategories"
            )
        return names

    def classes(self) -> list[ClassInfo]:
        """One class per folder, in order of the numbers.

        If the data is missing, these are the classes of the shipped table, if there is one.
        """
        shipped = load_class_table("caltech256") if "caltech256" in SHIPPED_TABLES else []
        if shipped and not os.path.isdir(self.root):
            return shipped
        described = {info.class_id: info for info in shipped}
        classes = [
            described.get(name) or ClassInfo(name, (class_name(name),))
            for name in self.class_names("train_folder")
        ]
        check_unique(classes, f"dataset.root: {self.root}")
        return classes
