"""Writing a cache: shard by shard, each whole or not at all, by any number of hosts, in one go or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int
from safetensors.numpy import save

from ragjax.errors import InputError, listing
from ragjax.interchange.atomic import atomic_file
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.hosts import to_host
from ragjax.teacher_cache.asked import Known
from ragjax.teacher_cache.manifest import (
    WINDOWS,
    Held,
    Manifest,
    damage,
    file_sha256,
    read_manifest,
    shard_name,
    unlike,
    write_manifest,
)

_SMALLEST, _LARGEST, _PARTS = 1 << 20, 1 << 28, 128


class Stopped(Exception):
    """Someone asked to stop; the shards that are whole stay."""


def write_cache(
    folder: Path,
    held: Held,
    windows: Int[np.ndarray, " sequences"],
    ask: Callable[[Int[np.ndarray, " rows"]], Known],
    *,
    batch_rows: int,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[int, int], None] = lambda done, of: None,
    host: int | None = None,
    hosts: int | None = None,
) -> Manifest:
    """Writes what of a cache is not there yet, or not as it was written.

    All hosts run the teacher together and call this alike, on a folder that all share; shard s is written by
    host s modulo their number. The shards are the same however many hosts there are and wherever an earlier
    call stopped: none has a batch in common with another.

    Args:
      folder: where the cache is, or is to be.
      held: what it was made from, and holds.
      windows: the windows it holds, rising.
      ask: what is kept of the teacher there, for `batch_rows` windows at a time.
      batch_rows: windows that are asked for at once.
      stop: whether to stop; asked after every batch.
      tell: told after every batch how many sequences are done, and of how many.
      host: number of this host; none: as JAX has it.
      hosts: how many there are; none: as JAX has it.

    Returns:
      The manifest; without files where other hosts have not written theirs.

    Raises:
      InputError: the folder holds something else, or a cache of something else.
      Stopped: `stop` said so; the same call goes on.
    """
    host = jax.process_index() if host is None else host
    hosts = jax.process_count() if hosts is None else hosts
    rows_per_shard = from_writer(lambda: _begin(folder, held, windows, batch_rows).rows_per_shard)
    manifest = Manifest(held, rows_per_shard)
    missing = from_writer(lambda: _missing(folder))
    done = held.sequences - sum(len(manifest.rows(shard)) for shard in missing)

    def answers() -> Iterator[tuple[int, int, Known]]:
        for shard in missing:
            rows = manifest.rows(shard)
            for start in range(rows.start, rows.stop, batch_rows):
                asked = np.minimum(np.arange(start, start + batch_rows), rows.stop - 1)
                yield shard, min(batch_rows, rows.stop - start), ask(windows[asked])

    parts: list[Known] = []
    for shard, count, known in _one_ahead(answers()):
        jax.block_until_ready(known)
        if shard % hosts == host:
            parts.append(jax.tree.map(lambda x, count=count: to_host(x)[:count], known))
            if sum(len(part.ids) for part in parts) == len(manifest.rows(shard)):
                whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
                _save(folder / shard_name(shard), whole._asdict())
                parts = []
        done += count
        tell(done, held.sequences)
        if stop() and done < held.sequences:
            raise Stopped
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the shards of all hosts are written")
    from_writer(lambda: _finish(folder))
    found = read_manifest(folder)
    assert found is not None
    return found


def _begin(folder: Path, held: Held, windows: np.ndarray, batch_rows: int) -> Manifest:
    """The manifest of the cache that is begun here, now or before."""
    there = read_manifest(folder)
    if there is not None:
        if found := unlike(there.held, held):
            raise InputError(
                f"{folder} is a cache of something else:\n{listing(found)}\nChoose another folder."
            )
        for left in folder.glob(".*.partial"):
            left.unlink(missing_ok=True)
        _save(folder / WINDOWS, {"windows": windows.astype(np.int64)})
        return there
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder, and no cache of a teacher: choose another.")
    begun = Manifest(held, _rows_per_shard(held, batch_rows))
    _save(folder / WINDOWS, {"windows": windows.astype(np.int64)})
    write_manifest(folder, begun)
    return begun


def _rows_per_shard(held: Held, batch_rows: int) -> int:
    """About a hundredth of the whole, of which a stop loses one at most; of whole batches."""
    row = held.bytes_per_token * held.sequence_length
    wanted = min(max(row * held.sequences // _PARTS, _SMALLEST), _LARGEST)
    return max(1, wanted // (row * batch_rows)) * batch_rows


def _missing(folder: Path) -> list[int]:
    """The shards that are not there; those that are not as the manifest has them are taken away first."""
    manifest = read_manifest(folder)
    assert manifest is not None
    files = {shard: folder / shard_name(shard) for shard in range(manifest.shards)}
    if manifest.files is not None:
        with ThreadPoolExecutor(max_workers=8) as readers:
            found = readers.map(lambda file: damage(folder, manifest, file.name), files.values())
            damaged = [file for file, amiss in zip(files.values(), found, strict=True) if amiss]
        # Files first: stopped in between, the manifest still tells that they are amiss.
        for file in damaged:
            file.unlink(missing_ok=True)
        if damaged:
            write_manifest(folder, Manifest(manifest.held, manifest.rows_per_shard))
    return [shard for shard, file in files.items() if not file.exists()]


def _finish(folder: Path) -> None:
    """Writes sizes and digests of all files into the manifest, where all are there."""
    manifest = read_manifest(folder)
    assert manifest is not None
    names = [WINDOWS, *(shard_name(shard) for shard in range(manifest.shards))]
    if manifest.files is not None or not all((folder / name).exists() for name in names):
        return
    with ThreadPoolExecutor(max_workers=8) as readers:
        digests = list(readers.map(lambda name: file_sha256(folder / name), names))
    files = {n: [(folder / n).stat().st_size, d] for n, d in zip(names, digests, strict=True)}
    write_manifest(folder, Manifest(manifest.held, manifest.rows_per_shard, files))


def _one_ahead(values: Iterator) -> Iterator:
    """The same values, each when the next has been asked for: the devices work while the host writes."""
    before = next(values, None)
    while before is not None:
        after = next(values, None)
        yield before
        before = after


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_file(file, overwrite=True) as partial:
        partial.write_bytes(save({name: np.ascontiguousarray(x) for name, x in arrays.items()}))
