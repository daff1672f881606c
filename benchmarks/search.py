"""Compare the speed of our exact search with the machine's limits and with other tools.

Input: a number of vectors and queries. Output: a Markdown table, and JSON with ``--json``: time, peak
memory and recall of

- reading the files, and the matrix product of the same shapes from memory; their sum is a lower bound for
  any exact search of files;
- ours;
- faiss's exact index (``IndexFlatIP``), filled from the same files;
- clip-retrieval's service over that index, one query at a time as its clients use it.

Each candidate runs in a separate process. Before it, the files are dropped from the page cache (with
``--warm``: read into it). The repeats alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.machine import (
    Neighbours,
    available_memory,
    copy_rate,
    drop_from_cache,
    peak_memory,
    product_seconds,
    read_seconds,
    wait_until_idle,
)
from benchmarks.record import publish, surroundings

Result = dict[str, Any]
CLUSTERS = 2000
MADE_AT_A_TIME = 50_000


# --- data -----------------------------------------------------------------------------------------


def make_embeddings(
    folder: Path, vectors: int, dimension: int, files: int, device: str = "cpu", queries: int = 10_000
) -> None:
    """Write random float16 unit vectors around 2,000 centres, with metadata, in clip-retrieval's layout.

    Also write queries around the same centres. The numbers are drawn on ``device``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    random = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=random, device=device)
    unit = partial(torch.nn.functional.normalize, dim=1)
    centres = unit(normal(CLUSTERS, dimension))

    def around_centres(rows: int) -> np.ndarray:
        chosen = centres[torch.randint(CLUSTERS, (rows,), generator=random, device=device)]
        return unit(chosen + normal(rows, dimension) / dimension**0.5).cpu().numpy()

    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    first = 0
    for number, rows in enumerate(np.diff(np.linspace(0, vectors, files + 1).astype(int))):
        path = folder / f"img_emb/img_emb_{number:05d}.npy"
        array = np.lib.format.open_memmap(path, "w+", np.float16, (int(rows), dimension))
        for start in range(0, rows, MADE_AT_A_TIME):
            piece = array[start : start + MADE_AT_A_TIME]
            piece[:] = around_centres(len(piece))
        array.flush()
        del array
        ids = range(first, first + int(rows))
        table = pa.table(
            {
                "id": [str(i) for i in ids],
                "url": [f"http://images/{i}.jpg" for i in ids],
                "caption": [f"image {i}" for i in ids],
            }
        )
        pq.write_table(table, folder / f"metadata/metadata_{number:05d}.parquet")
        first += int(rows)
    np.save(folder / "queries.npy", around_centres(queries))
    os.sync()  # only pages already on the disk can be dropped from the cache


def arrays_of(folder: Path) -> list[Path]:
    """List the files of vectors."""
    return sorted((folder / "img_emb").glob("*.npy"))


# --- candidates -----------------------------------------------------------------------------------


def run_read(options: argparse.Namespace) -> Result:
    """Read the files once."""
    return {"seconds": read_seconds(arrays_of(options.folder))}


def run_product(options: argparse.Namespace) -> Result:
    """Compute the matrix product in float32."""
    from augbench.retrieval.comparison import BLOCK_ROWS, ROWS_PER_TILE

    block = BLOCK_ROWS if options.device == "cpu" else ROWS_PER_TILE
    return {
        "seconds": product_seconds(
            options.queries, options.dim, options.vectors, block, "float32", options.device
        )
    }


def run_product_low(options: argparse.Namespace) -> Result:
    """Compute the matrix product in the number format that our search uses on this device."""
    import torch

    from augbench.retrieval.comparison import BLOCK_ROWS, ROWS_PER_TILE, fastest_product

    block = BLOCK_ROWS if options.device == "cpu" else ROWS_PER_TILE
    dtype = str(fastest_product(torch.device(options.device))).removeprefix("torch.")
    return {
        "seconds": product_seconds(
            options.queries, options.dim, options.vectors, block, dtype, options.device
        ),
        "format": dtype,
    }


def run_ours(options: argparse.Namespace) -> Result:
    """Run our search, from opening the files to the hits; then read metadata and embeddings of the hits."""
    import torch

    from augbench.retrieval.embedding_files import open_embeddings
    from augbench.retrieval.exact import ExactSearch, collect

    queries = _queries(options)
    torch.zeros(1, device=options.device)
    start = time.perf_counter()
    files = open_embeddings(options.folder)
    with tempfile.TemporaryDirectory(dir=options.folder) as partial:
        hits = ExactSearch(files, queries, options.k, partial=partial, device=options.device).hits()
    seconds, memory = time.perf_counter() - start, peak_memory()
    start = time.perf_counter()
    collect(hits, files)
    offsets = np.cumsum([0, *(file.rows for file in files)])
    return {
        "seconds": seconds,
        "peak_memory": memory,
        "collect_seconds": time.perf_counter() - start,
        "collect_peak_memory": peak_memory(),
        "found": offsets[hits.file] + hits.row,
        "similarity": hits.similarity,
    }


def run_faiss(options: argparse.Namespace) -> Result:
    """Run ``IndexFlatIP`` over all vectors; if memory is too small, use an index per file and merge."""
    import faiss
    import torch

    queries = _queries(options)
    whole = _fits(options)
    start = time.perf_counter()
    if whole:
        index = _faiss_index(options)
        filled = time.perf_counter() - start
        similarity, found = index.search(queries, options.k)
        return {
            "seconds": time.perf_counter() - start,
            "fill_seconds": filled,
            "whole": True,
            "found": found,
            "similarity": similarity,
        }
    best = faiss.ResultHeap(len(queries), options.k, keep_max=True)
    first = 0
    for path in arrays_of(options.folder):
        index = faiss.IndexFlatIP(options.dim)
        index.add(torch.from_numpy(np.load(path)).float().numpy())
        similarity, found = index.search(queries, options.k)
        best.add_result(similarity, found + first)
        first += index.ntotal
    best.finalize()
    return {"seconds": time.perf_counter() - start, "whole": False, "found": best.I, "similarity": best.D}


def run_clip_retrieval(options: argparse.Namespace) -> Result:
    """Run clip-retrieval's service in this process on embedded queries.

    Deduplication and safety filters are off. It answers ``options.clip_queries`` queries; the time is
    scaled to all.
    """
    from clip_retrieval.clip_back import ClipResource, KnnService, ParquetMetadataProvider

    if not _fits(options):
        return {"seconds": None, "note": "the index does not fit into memory"}
    queries = _queries(options)[: options.clip_queries]
    start = time.perf_counter()
    resource = ClipResource(
        device="cpu",
        model=None,
        preprocess=None,
        tokenizer=None,
        model_txt_mclip=None,
        safety_model=None,
        violence_detector=None,
        metadata_provider=ParquetMetadataProvider(str(options.folder / "metadata")),
        image_index=_faiss_index(options),
        text_index=None,
        ivf_old_to_new_mapping=None,
        columns_to_return=["id", "url", "caption"],
        metadata_is_ordered_by_ivf=False,
        aesthetic_embeddings=None,
    )
    service = KnnService(clip_resources={"corpus": resource})
    filled = time.perf_counter() - start
    start = time.perf_counter()
    found = [
        service.query(
            embedding_input=query, num_images=options.k, num_result_ids=options.k, deduplicate=False
        )
        for query in queries
    ]
    per_query = (time.perf_counter() - start) / len(queries)
    start = time.perf_counter()
    for query in queries:
        service.knn_search(
            query[None],
            "image",
            options.k,
            resource,
            deduplicate=False,
            use_safety_model=False,
            use_violence_detector=False,
        )
    search_per_query = (time.perf_counter() - start) / len(queries)
    return {
        "seconds": filled + per_query * options.queries,
        "fill_seconds": filled,
        "seconds_per_query": per_query,
        "queries": len(queries),
        "search_seconds_per_query": search_per_query,
        "found": np.array([[int(row["id"]) for row in rows] for rows in found]),
    }


CANDIDATES: dict[str, Callable[[argparse.Namespace], Result]] = {
    "read": run_read,
    "product": run_product,
    "product_low": run_product_low,
    "ours": run_ours,
    "faiss": run_faiss,
    "clip_retrieval": run_clip_retrieval,
}


def _queries(options: argparse.Namespace) -> np.ndarray:
    return np.load(options.folder / "queries.npy")[: options.queries]


def _fits(options: argparse.Namespace) -> bool:
    return 2.5 * 4 * options.vectors * options.dim < available_memory()  # faiss doubles its array to grow


def _faiss_index(options: argparse.Namespace) -> Any:
    import faiss
    import torch

    index = faiss.IndexFlatIP(options.dim)
    for path in arrays_of(options.folder):
        array = np.load(path, mmap_mode="c")
        for start in range(0, len(array), MADE_AT_A_TIME):
            # torch converts, because NumPy takes five times as long
            index.add(torch.from_numpy(array[start : start + MADE_AT_A_TIME]).float().numpy())
    return index


# --- comparison -----------------------------------------------------------------------------------


def run_candidate(options: argparse.Namespace) -> None:
    """Run the candidate in this process; write the found neighbours to a file and print the figures."""
    result = CANDIDATES[options.candidate](options)
    result.setdefault("peak_memory", peak_memory())
    arrays = {name: value for name, value in result.items() if isinstance(value, np.ndarray)}
    np.savez(options.folder / f"{options.candidate}.npz", **arrays)
    print(json.dumps({name: value for name, value in result.items() if name not in arrays}))


def compare(options: argparse.Namespace, arguments: Sequence[str]) -> Result:
    """Run all candidates, ``options.repeats`` times in turn."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    results: dict[str, list[Result]] = {name: [] for name in options.candidates}
    for repeat in range(options.repeats):
        for name in options.candidates:
            if options.warm:
                read_seconds(arrays_of(options.folder))
            else:
                drop_from_cache(
                    [*arrays_of(options.folder), *(options.folder / "metadata").glob("*.parquet")]
                )
            wait_until_idle(60 * options.wait)
            command = [sys.executable, __file__, *arguments, "--candidate", name]
            with Neighbours() as neighbours:
                lines = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=environment
                ).stdout.splitlines()
            results[name].append({**json.loads(lines[-1]), "cores_used_by_others": neighbours.cores})
            print(f"repeat {repeat + 1}: {name}: {results[name][-1]}", file=sys.stderr)
    record = surroundings("benchmarks/search.py", arguments, options.device)
    record["machine"]["copy_gb_per_second"] = round(copy_rate() / 1e9, 1)
    return {
        **record,
        "threads": options.threads,
        "page_cache": "warm" if options.warm else "cold (POSIX_FADV_DONTNEED)",
        "bytes": sum(path.stat().st_size for path in arrays_of(options.folder)),
        "results": results,
        "recall": {
            name: recall(options.folder, name)
            for name in ("ours", "clip_retrieval")
            if name in results and "faiss" in results
        },
    }


def recall(folder: Path, name: str) -> float:
    """Share of faiss's neighbours that the candidate found, averaged over its queries."""
    with np.load(folder / "faiss.npz") as exact, np.load(folder / f"{name}.npz") as other:
        if "found" not in other:
            return float("nan")
        pairs = list(zip(exact["found"], other["found"], strict=False))
    return float(np.mean([len(np.intersect1d(one, two)) / len(one) for one, two in pairs]))


def markdown(report: Result, options: argparse.Namespace) -> str:
    """Return the table, and below it the ratios to the lower bound."""

    def seconds(name: str) -> float:
        return statistics.median(result["seconds"] for result in results[name])

    results = {name: runs for name, runs in report["results"].items() if runs[0]["seconds"] is not None}
    scaled_from = results.get("clip_retrieval", [{}])[0].get("queries", "")
    names = {
        "read": "reading the files",
        "product": "matrix product, float32",
        "product_low": f"matrix product, {results.get('product_low', [{}])[0].get('format', '')}",
        "ours": "**ours**",
        "faiss": "faiss `IndexFlatIP`"
        if results.get("faiss", [{}])[0].get("whole", True)
        else "faiss `IndexFlatIP`, file by file",
        "clip_retrieval": f"clip-retrieval, query by query (scaled from {scaled_from})",
    }
    lines = ["| | seconds: median (least - most) | peak memory, GiB | recall |", "|---|---|---|---|"]
    for name, runs in results.items():
        times = sorted(run["seconds"] for run in runs)
        memory = max(run["peak_memory"] for run in runs) / 2**30
        exact = (
            "1 (reference)"
            if name == "faiss"
            else f"{report['recall'][name]:.6g}"
            if name in report["recall"]
            else ""
        )
        spread = f"{seconds(name):.1f} ({times[0]:.1f} - {times[-1]:.1f})"
        lines.append(f"| {names[name]} | {spread} | {memory:.2f} | {exact} |")
    lines.append("")
    for product in ("product", "product_low"):
        if {"ours", "read", product} <= set(results):
            ratio = seconds("ours") / (seconds("read") + seconds(product))
            lines.append(f"- Ours / (reading + {names[product]}) = {ratio:.2f}")
    if "ours" in results:
        gather = statistics.median(run["collect_seconds"] for run in results["ours"])
        hits = options.queries * options.k
        lines.append(
            f"- Metadata and embeddings of the {hits:,} hits, which ours reads afterwards: {gather:.1f} s"
        )
    if "clip_retrieval" in results:
        (fill, whole, search) = (
            statistics.median(run[name] for run in results["clip_retrieval"])
            for name in ("fill_seconds", "seconds_per_query", "search_seconds_per_query")
        )
        lines.append(
            f"- clip-retrieval: {fill:.1f} s to fill the index, then {whole:.3f} s per query: "
            f"{search:.3f} s for the index, the rest for metadata"
        )
    machine = report["machine"]
    others = max(run["cores_used_by_others"] for runs in results.values() for run in runs)
    lines.append(
        f"\n{options.vectors:,} vectors of {options.dim} float16 numbers in {options.files} files "
        f"({report['bytes'] / 1e9:.1f} GB), {options.queries:,} queries, k = {options.k}; "
        f"{machine['processor']}, {report['threads']} threads, {machine['memory_gib']} GiB; "
        f"{machine.get('gpu', 'no GPU')}; at most {others} cores used by other processes; "
        f"page cache {report['page_cache']}; {options.repeats} repeats; {report['date']}; "
        f"`{report['command']}`"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Make the data, compare, print the result, remove the data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--vectors", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=1000, help="at most 10,000")
    parser.add_argument("--k", type=int, default=182)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="device of ours and of the matrix product"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--clip-queries",
        type=int,
        default=10,
        help="queries that clip-retrieval answers; its time is scaled to all",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        help="maximum minutes to wait, before each candidate, until other processes are idle",
    )
    parser.add_argument("--warm", action="store_true", help="read the files into the page cache first")
    parser.add_argument(
        "--folder", type=Path, required=True, help="a new folder for the data: 2 bytes x vectors x dim"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the data, and use them if they exist already"
    )
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.candidate:
        run_candidate(options)
        return
    if not (options.keep and (options.folder / "queries.npy").exists()):
        if options.folder.exists():
            parser.error(
                f"--folder {options.folder} exists already and would be removed at the end; give a new one"
            )
        options.folder.mkdir(parents=True)
        make_embeddings(options.folder, options.vectors, options.dim, options.files)
    try:
        report = compare(options, arguments)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder)
    publish(report, markdown(report, options), options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
