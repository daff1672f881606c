"""Write ImageNet's class table: ``python make_imagenet.py data.noun [imagenet.tsv]``.

Input: the 1000 classes in label order (timm, which comes with open_clip) and WordNet 3.0's nouns. Output:
the table. Debian's package wordnet-base has the nouns; root is not needed to get them::

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python make_imagenet.py wordnet/usr/share/wordnet/data.noun

An ImageNet class id is "n" and the offset of its synset in data.noun. Offsets differ between versions of
WordNet; therefore the script fails unless the names and definition of every class equal those in timm.
Lemmas are the synset's, in WordNet's order; hypernyms are the first lemma of each synset directly above it;
the definition is the gloss up to its first example.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

OUTPUT = Path(__file__).with_name("imagenet.tsv")
NOTICE = (
    "# ImageNet's 1000 classes (Russakovsky et al., 2015) in label order; "
    "made by make_imagenet.py from WordNet 3.0.",
    "# WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. "
    "Licence and disclaimer: WORDNET_LICENSE.txt beside this file.",
)


@dataclass(frozen=True)
class Synset:
    """One noun sense: its names, the offsets of the synsets directly above it, and its definition."""

    lemmas: tuple[str, ...]
    hypernyms: tuple[str, ...]
    definition: str


def read_nouns(path: str | Path) -> dict[str, Synset]:
    """Read synsets by offset from a file in the format of WordNet's manual page wndb(5WN).

    A line is ``offset lexicographer-file n w_cnt (word lex_id)* p_cnt (symbol offset n source/target)* |
    gloss``, with w_cnt in hexadecimal. The symbol ``@`` means "hypernym". Nouns have no syntactic markers;
    an underscore stands for a space.
    """
    synsets = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        data, _, gloss = line.partition(" | ")
        fields = data.split()
        first_pointer = 5 + 2 * int(fields[3], 16)
        words = fields[4 : first_pointer - 1 : 2]
        pointers = [
            fields[start : start + 2]
            for start in range(first_pointer, first_pointer + 4 * int(fields[first_pointer - 1]), 4)
        ]
        synsets[fields[0]] = Synset(
            lemmas=tuple(word.replace("_", " ") for word in words),
            hypernyms=tuple(offset for symbol, offset in pointers if symbol == "@"),
            definition=gloss.partition('; "')[0].strip(),
        )
    return synsets


def main(nouns: str, output: str | Path = OUTPUT) -> None:
    """Read WordNet's nouns, compare with timm, write the table."""
    from timm.data import ImageNetInfo

    if "WordNet 3.0 Copyright 2006" not in Path(nouns).read_text(encoding="utf-8")[:4000]:
        sys.exit(f"{nouns}: not WordNet 3.0 (its licence is not at the head of the file)")
    synsets, classes = read_nouns(nouns), ImageNetInfo("imagenet-1k")
    with Path(output).open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"{line}\n" for line in NOTICE)
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["class_id", "lemmas", "hypernyms", "definition"])
        for class_id in classes.label_names():
            synset = synsets[class_id.removeprefix("n")]
            found = f"{', '.join(synset.lemmas)}: {synset.definition}"
            known = classes.label_name_to_description(class_id, detailed=True)
            if found != known:
                sys.exit(f"{class_id}: {nouns} says {found!r}, timm says {known!r}")
            writer.writerow(
                [
                    class_id,
                    "|".join(synset.lemmas),
                    "|".join(synsets[offset].lemmas[0] for offset in synset.hypernyms),
                    synset.definition,
                ]
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
