"""`aloe bags to-lerobot` and `aloe bags from-lerobot`: episodes as a LeRobotDataset and back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from aloe_core.errors import AloeError


def to_lerobot(
    bags: Positional[tuple[Path, ...]],
    *,
    output: Path,
    repo_id: str,
    robot: str | None = None,
    advantages: Path | None = None,
) -> int:
    """Write bags as a LeRobotDataset (format v3) that LeRobot trains on.

    Args:
        bags: Bags, folders that hold bags, or patterns.
        output: Folder of the dataset; must not exist.
        repo_id: Name of the dataset, "user/name".
        robot: Robot description they were recorded with; by default the one that the first bag names.
        advantages: NPZ file with one array per episode id, an advantage per step; by default every advantage is NaN.
    """
    import numpy as np

    from aloe_core.robot import load_robot

    _need_packages()
    from aloe_policy.lerobot_dataset.export import to_lerobot as export

    given = None
    if advantages is not None:
        try:
            with np.load(advantages, allow_pickle=False) as file:
                given = {key: file[key] for key in file.files}
        except (OSError, ValueError, AttributeError) as error:
            raise AloeError(f"{advantages}: not a readable NPZ file: {error}") from None
    count = export(bags, output, repo_id, load_robot(robot) if robot else None, given, print)
    print(f"{count} episodes in {output}; read them with LeRobotDataset('{repo_id}', root='{output}')")
    return 0


def from_lerobot(
    dataset: Positional[Path],
    *,
    output: Path,
    robot: str | None = None,
    source: Literal["human", "policy", "scripted"] = "human",
) -> int:
    """Write the episodes of a LeRobotDataset (format v3) as bags.

    Args:
        dataset: Folder of the dataset.
        output: Folder for the bags; none of their names may exist there.
        robot: Robot description that the dataset's vectors follow; by default the one that a dataset of ours names.
        source: Who drove, for a dataset that was not written by `aloe bags to-lerobot`.
    """
    from aloe_core.robot import load_robot
    from aloe_core.vocabulary import Source

    _need_packages()
    from aloe_policy.lerobot_dataset.bags import from_lerobot as convert

    count = convert(dataset, output, load_robot(robot) if robot else None, Source[source.upper()], print)
    print(f"{count} bags in {output}")
    return 0


def _need_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("pyarrow", "av") if find_spec(name) is None]
    if missing:
        raise AloeError(
            f"LeRobotDatasets need the Python packages {' and '.join(missing)}: pip install 'aloe_policy[lerobot]'"
        )
