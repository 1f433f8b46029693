"""`aloe replay`: a policy and a critic along recorded bags, in shadow mode and without ROS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from aloe_core.errors import AloeError

SUMMARY_FILE = "summary.json"


def replay(
    bags: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    output: Path,
    policy: str = "",
    critic: Path | None = None,
    critic_policy: Path | None = None,
    robot: str = "",
    instruction: str = "",
    every: int = 0,
    seed: int = 0,
    samples: int = 8,
    threads: int = 1,
) -> int:
    """Let a policy propose and a critic judge along recorded bags, as in shadow mode on the robot; writes new bags, a page about each and a summary.

    Args:
        bags: bags, folders that hold bags, or patterns; also bags of `ros2 bag record`.
        output: folder for the new bags, <bag>.html and summary.json.
        policy: checkpoint folder or name of a policy; without one, bags that were replayed already are shown and summarised in the output folder.
        critic: folder or file of a critic; scores recorded and proposed chunks.
        critic_policy: checkpoint that the critic's V(s) is of; by default the policy.
        robot: name or file of the robot description; by default the one that each bag names.
        instruction: language instruction for bags that have none.
        every: ask at every so many ticks; 0: where the recording asked, or every 25 ticks in a bag without requests.
        seed: of the policy's randomness; that of the recording gives the recorded chunks.
        samples: chunks of the policy per V(s).
        threads: CPU threads; with 1, as on the robot, chunks are equal to the last bit.
    """
    from dataclasses import replace

    from aloe_core.bag_messages import find_bags
    from aloe_core.policy import load_policy
    from aloe_core.robot import load_robot
    from aloe_critic.recording import Recording
    from aloe_critic.replay_report import write_page
    from aloe_critic.replay_summary import summarise

    if threads < 1:
        raise AloeError(f"--threads {threads}: at least 1")
    if every < 0:
        raise AloeError(f"--every {every}: ask at every so many ticks, or 0")
    found = find_bags(bags)
    described = load_robot(robot) if robot else None
    rows: list[dict[str, Any]] = []
    loaded: dict[str, Any] = {}  # robot hash -> policy and critic
    if policy:
        import torch
        from tqdm import tqdm  # type: ignore[import-untyped]

        from aloe_critic.replay_shadow import replay as replay_one
        from aloe_critic.scoring import ChunkScorer

        torch.set_num_threads(threads)
        if critic and not (critic_policy or Path(policy).is_dir()):
            raise AloeError(f"policy '{policy}' has no checkpoint: name the one that V(s) is of with --critic-policy")
    elif critic:
        raise AloeError("a critic needs a policy: name one with --policy")
    for bag in found:
        folder, problems = bag, list[str]()
        if policy:
            folder = output / bag.resolve().name
            recording = Recording(bag, described)
            if instruction and not recording.info.instruction:
                recording.info = replace(recording.info, instruction=instruction)
            key = recording.robot.hash
            if key not in loaded:
                scorer = (
                    ChunkScorer(critic, critic_policy or Path(policy), recording.robot, samples, seed)
                    if critic
                    else None
                )
                loaded[key] = load_policy(policy, recording.robot), scorer
            try:
                with tqdm(desc=recording.folder.name, unit=" requests", leave=False, disable=None) as bar:
                    problems = replay_one(recording, loaded[key][0], folder, loaded[key][1], every, seed, bar.update)
            finally:
                recording.close()
        rows.append({**summarise(folder, described), "left_out": problems})
        print(line(rows[-1]), flush=True)
        print(f"  {write_page(folder, output, rows[-1], described)}")
        for problem in problems:
            print(f"  left out: {problem}")
    output.mkdir(parents=True, exist_ok=True)
    file = output / SUMMARY_FILE
    file.write_text(json.dumps({"policy": policy, "critic": str(critic or ""), "bags": rows}, indent=2) + "\n")
    print(file)
    return 0


def line(row: dict[str, Any]) -> str:
    """One bag for a person."""
    errors = [
        f"{source} {about['joint_rmse_rad']:.4f} rad over {about['ticks']}"
        for source, about in row["error"].items()
        if about["joint_rmse_rad"] is not None
    ]
    chunks = row["recorded_chunks"]
    text = f"{row['bag']}  {row['outcome']}  {row['proposals']} proposals of {row['policy_version']}"
    if chunks["pairs"]:
        text += f", {chunks['identical']}/{chunks['pairs']} as recorded"
    text += f"\n  against what was {row['compared_with']}: {'; '.join(errors) or 'nothing to compare'}"
    for name, value in row["values"].items():
        if value:
            numbers = f"q {value['q']:.3f}, v {value['v']:.3f}, advantage {value['advantage']:+.3f}"
            text += f"\n  {name}: {numbers} (positive {100 * value['positive_advantage']:.0f} %)"
    if agreement := row["agreement"]:
        same, preferred = 100 * agreement["same_sign"], 100 * agreement["proposal_preferred"]
        text += f"\n  same sign {same:.0f} %, proposal preferred {preferred:.0f} %"
    return text
