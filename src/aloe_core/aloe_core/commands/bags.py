"""`aloe bags`: look at, check and restore recorded episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

Bags = Positional[tuple[Path, ...]]


def show(bag: Positional[Path], *, robot: str | None = None) -> int:
    """Show what one bag holds: the episode, its topics, who drove when, and what is wrong with it.

    Args:
        bag: Folder of the bag.
        robot: Robot description it was recorded with; by default the one that the bag names.
    """
    from aloe_core.bag_audit import verify
    from aloe_core.bag_reader import read_episode
    from aloe_core.robot import load_robot
    from aloe_core.vocabulary import Source

    description = load_robot(robot) if robot else None
    record = read_episode(bag, description)
    check = verify(bag, description)
    info = record.info
    seconds = len(record) / record.robot.control_rate_hz
    print(f"episode      {info.episode_id}")
    print(f"task         {info.task}{f': {info.instruction}' if info.instruction else ''}")
    print(f"robot        {record.robot.name} ({record.robot.hash})")
    print(f"policy       {info.policy_version or 'none'}, iteration {info.iteration}; seed {info.seed}")
    by = f", labelled by {record.label.who or 'unknown'}" if record.label else ""
    print(f"outcome      {record.outcome.name.lower()} ({record.termination.name.lower()}{by})")
    print(
        f"length       {len(record)} steps, {seconds:.2f} s; {len(record.chunks)} chunks; {check.size_bytes / 1e6:.2f} MB"
    )
    print("\nfragment     steps  source          intervention")
    for start, stop in record.runs():
        sources = "+".join(dict.fromkeys(Source(s).name.lower() for s in record.source[start]))
        number = int(record.intervention_id[start])
        print(
            f"{record.fragment[start]:8d} {record.step[start]:6d} .. {record.step[stop - 1]:<6d} {sources:<15s} {number or ''}"
        )
    print("\n   count     rate   max gap  topic")
    for topic in check.topics:
        print(f"{topic.count:8d} {topic.rate:6.1f} Hz {topic.max_gap:7.3f} s  {topic.topic} ({topic.type})")
    _print_problems(check.problems)
    return 0


def verify(bags: Bags, *, robot: str | None = None, json_: Annotated[Path | None, arg(name="json")] = None) -> int:
    """Check bags from the first byte to the last: checksums, counts, gaps, transitions. Exit code 1 if one is not in order.

    Args:
        bags: Bags, folders that hold bags, or patterns.
        robot: Robot description they must have been recorded with; by default the one that each names.
        json_: Also write the results to this file.
    """
    from aloe_core import bag_audit
    from aloe_core.bag_reader import find_bags
    from aloe_core.robot import load_robot

    description = load_robot(robot) if robot else None
    checks = []
    for folder in find_bags(bags):
        check = bag_audit.verify(folder, description)
        checks.append(check)
        state = "ok" if check.ok else "NOT OK"
        print(
            f"{state:7s} {folder}: {check.steps} steps, {check.messages} messages, {check.outcome or 'outcome unknown'}"
        )
        for problem in check.problems:
            print(f"          {problem}")
    bad = sum(not c.ok for c in checks)
    print(f"{len(checks)} bags, {bad} not in order")
    if json_ is not None:
        json_.write_text(json.dumps([c.to_json() for c in checks], indent=1) + "\n")
    return 1 if bad else 0


def recover(bags: Bags) -> int:
    """Make recordings that were killed readable again; the originals are kept beside them as *.unfinalized.

    Args:
        bags: Bags, folders that hold bags, or patterns.
    """
    from aloe_core.bag_reader import find_bags
    from aloe_core.bag_recover import recover as recover_bag
    from aloe_core.errors import AloeError

    failed = 0
    for folder in find_bags(bags):
        try:
            result = recover_bag(folder)
        except AloeError as error:
            failed += 1
            print(f"failed     {error}")
            continue
        if result.needed:
            kept = ", ".join(p.name for p in result.originals)
            print(f"recovered  {folder}: {result.messages} messages; the original is kept as {kept}")
            _print_problems(result.damage)
        else:
            print(f"in order   {folder}: nothing to recover")
    return 1 if failed else 0


def _print_problems(problems: tuple[str, ...]) -> None:
    for problem in problems:
        print(f"problem: {problem}")
