"""What a recorder that was killed has left is made whole by the next one, without anybody's help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from aloe_core.bag_format import METADATA_FILE
from aloe_core.bag_recover import lock, recover
from aloe_core.bag_storage import open_storage
from aloe_core.errors import AloeError
from aloe_intervention.recording import check_space


def recover_unfinished(bags: Path, min_free_bytes: int) -> Iterator[tuple[bool, str]]:
    """Recovers, one by one, the episodes directly in `bags` whose recording broke off; the originals are kept (`aloe_core.bag_recover`).

    Left alone are bags that another process is writing, which their lock tells, those that no recorder of ours began, and those for which there
    is no room beside `min_free_bytes`. Yields for each bag whether it was recovered, and the sentence to log.
    """
    unfinished = [folder for folder in sorted(bags.iterdir()) if _unfinished(folder)]
    with ExitStack() as until:
        alone = lock(bags, until) if unfinished else True
        if not alone:
            why = "another process is recovering there" if alone is False else "its file system has no locks"
            yield False, f"{len(unfinished)} unfinished bags in {bags} are left to 'aloe bags recover': {why}"
            return
        for folder in unfinished:
            try:
                check_space(bags, min_free_bytes + sum(file.stat().st_size for file in folder.glob("*.mcap")))
                result = recover(folder)
            except (AloeError, OSError) as error:
                yield False, f"bag {folder} is not finished and cannot be recovered: {error}"
                continue
            if result.needed:
                kept = ", ".join(p.name for p in result.originals)
                lost = f", {len(result.damage)} parts could not be read" if result.damage else ""
                yield (
                    True,
                    f"bag {folder} is recovered: {result.messages} messages{lost}; the original is kept as {kept}",
                )


def _unfinished(folder: Path) -> bool:
    """Whether this is an episode's bag without its end; `ros2 bag record` may be writing others."""
    if folder.name.startswith(".") or (folder / METADATA_FILE).exists() or not any(folder.glob("*.mcap")):
        return False
    try:
        storage = open_storage(folder)
    except (AloeError, OSError):
        return False  # an empty or foreign file
    storage.close()
    return not storage.finalised and bool(storage.custom_data.get("episode_id"))
