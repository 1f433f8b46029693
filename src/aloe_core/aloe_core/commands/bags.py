"""`aloe bags`: look at, check and restore recorded episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from aloe_core.bag_reader import EpisodeRecord
    from aloe_core.fragments import Protocol

Bags = Positional[tuple[Path, ...]]


def show(
    bag: Positional[Path],
    *,
    robot: str | None = None,
    protocol: Literal["aloe", "hil_serl", "hg_dagger"] = "aloe",
    picture: Path | None = None,
) -> int:
    """Show what one bag holds: the episode, who drove when and what that teaches, its topics, and what is wrong with it.

    Args:
        bag: Folder of the bag.
        robot: Robot description it was recorded with; by default the one that the bag names.
        protocol: How interventions are read into fragments.
        picture: Also draw the timeline into this file, PNG, PDF or SVG by its name.
    """
    from aloe_core.bag_audit import verify
    from aloe_core.bag_reader import read_episode
    from aloe_core.robot import load_robot

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
    print(f"\nfragments under the protocol {protocol}")
    for line in _fragment_table(record, protocol):
        print(line)
    print("\n   count     rate   max gap  topic")
    for topic in check.topics:
        print(f"{topic.count:8d} {topic.rate:6.1f} Hz {topic.max_gap:7.3f} s  {topic.topic} ({topic.type})")
    _print_problems(check.problems)
    if picture is not None:
        from aloe_core.timeline import save_timeline

        save_timeline(record, picture, protocol)
        print(f"\npicture      {picture}")
    return 0


def _fragment_table(record: EpisodeRecord, protocol: Protocol) -> list[str]:
    """Head and one line per fragment, in columns; the arms are named where the source did not drive all of them."""
    import numpy as np

    from aloe_core.fragments import derive_fragments

    ticks = np.append(record.stamps_ns, record.final_stamp_ns)
    rows = [("", "start [s]", "end [s]", "steps", "source", "intervention", "outcome", "end", "may train")]
    for number, f in enumerate(derive_fragments(record.source, record.outcome, protocol)):
        span = slice(f.start, f.stop)
        names = record.robot.arm_names
        driven = [n for n, who in zip(names, record.source[span].T, strict=True) if (who == f.source).any()]
        arms = f" ({', '.join(driven)})" if len(driven) < len(names) else ""
        start, end = (ticks[[f.start, f.stop]] - ticks[0]) / 1e9
        rows.append(
            (
                str(number),
                f"{start:.2f}",
                f"{end:.2f}",
                f"{record.step[f.start]} .. {record.step[f.stop - 1]}",
                f.source.name.lower() + arms,
                ", ".join(str(i) for i in np.unique(record.intervention_id[span]) if i) or "-",
                f.outcome.name.lower(),
                "terminal" if f.terminal else "truncated" if f.truncated else "goes on",
                ", ".join(w for w, t in (("policy", f.train_policy), ("critic", f.train_critic)) if t) or "nothing",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = 4  # columns of numbers stand to the right
    return [
        "  ".join(
            w.rjust(n) if i < numbers else w.ljust(n) for i, (w, n) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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
