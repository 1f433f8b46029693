"""`aloe check`: is this set-up fit to move?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from aloe_intervention.checks import Check


def check(
    robot: Positional[str] = "bimanual_ur5e",
    *,
    policy: str = "",
    bags: Path = Path("bags"),
    min_free_gb: float = 2.0,
    seconds: float = 3.0,
    namespace: str = "/",
    json_: Annotated[Path | None, arg(name="json")] = None,
) -> int:
    """Test a launched set-up before it moves: one line per check, exit code 1 if one fails. Nothing is commanded.

    Args:
        robot: Robot description: a name in config/robots or a YAML file.
        policy: Checkpoint folder or kind of policy that is to drive; empty: only the running one is looked at.
        bags: Folder for the recorded episodes.
        min_free_gb: Space that recorder_node asks for [GB].
        seconds: How long to listen to the graph [s].
        namespace: Namespace of the nodes.
        json_: Also write the results to this file.
    """
    from aloe_core.errors import AloeError
    from aloe_core.robot import load_robot
    from aloe_intervention import checks
    from aloe_intervention.hidraw import find_devices
    from aloe_intervention.nodes.check_probe import probe

    if not seconds > 0:
        raise AloeError(f"--seconds must be above 0, not {seconds}")
    found: list[Check] = []
    try:
        description = load_robot(robot)
    except AloeError as error:
        found.append(
            checks.Check(checks.Level.FAIL, "robot description", str(error), "correct it; see docs/new_robot.md")
        )
    else:
        found.append(checks.Check(checks.Level.OK, "robot description", f"{description.name}, hash {description.hash}"))
        findings = probe(description, seconds, namespace)
        found += checks.check_graph(description, findings)
        bytes_per_s = sum(heard.bytes for heard in findings.images.values()) / seconds
        found.append(checks.check_disk(bags, min_free_gb, bytes_per_s))
        if policy:
            found.append(checks.check_policy(policy, description))
        found += checks.check_running_policy(findings.policy, bool(policy))
        devices = find_devices()
        found.append(checks.check_spacemice(description, devices, [os.access(d.path, os.R_OK) for d in devices]))
        found.append(checks.check_dds(os.environ, findings.raw_images))
    for item in found:
        print(f"{item.level.value:4}  {item.name}: {item.found}{f'; {item.advice}' if item.advice else ''}")
    counts = {level: sum(item.level is level for item in found) for level in checks.Level}
    print(", ".join(f"{count} {level.value}" for level, count in counts.items()))
    failed = counts[checks.Level.FAIL] > 0
    if json_ is not None:
        json_.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"level": i.level.value, "name": i.name, "found": i.found, "advice": i.advice} for i in found]
        json_.write_text(json.dumps({"fit": not failed, "checks": lines}, indent=2) + "\n")
    return int(failed)
