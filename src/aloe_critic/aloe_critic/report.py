"""The critic's report of an iteration: one HTML page that needs nothing else, and its pictures as PNG."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from aloe_core.bag_format import replace_file
from aloe_core.errors import AloeError
from aloe_core.policy import POLICY_FILE
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome
from aloe_critic import figures, judgement
from aloe_critic.critic_file import CRITIC_FILE, load_critic
from aloe_critic.improvement import POLICY, STORE, ImproveConfig, ImproveResult, read_result
from aloe_critic.metrics import read_metrics
from aloe_critic.ope import calibration_curve, spearman
from aloe_critic.page import Page
from aloe_critic.progress import success_features, train_progress
from aloe_critic.replay import StoreReplay
from aloe_critic.report_episodes import add_episodes, different
from aloe_critic.started import read_started, started_replay
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.replay import ReplayStore, replay_report
from aloe_policy.trainable import load_trainable

JUDGED = 4000  # samples at most for the overview pictures; more would not change them
TABLE_ROWS = 40
NUMBERS_FILE = "numbers.json"


def write_report(
    iteration: Path,
    robot: RobotDescription,
    config: ImproveConfig | None = None,
    episodes: int = 4,
    seed: int = 0,
    rerun: bool = False,
    on_step: Callable[[str], None] = lambda what: None,
    progress: bool = False,
) -> Path:
    """Makes `report/index.html` in the folder of a finished iteration and returns it; the accuracy's numbers also go to `report/numbers.json`.

    The page is about the episodes that the iteration learned from, whatever the store has taken in since.

    Args:
        iteration: RUN/001 and so on.
        config: refused if its reward, protocol or horizons are not those of the iteration; None: no such check.
        episodes: how many episodes to show over time, of different endings.
        seed: of the policy's samples and of which samples are judged.
        rerun: also write each of these episodes as a Rerun recording, `episode_<number>.rrd`.
        on_step: told what is being made.
        progress: also train a value of progress on the successes.

    Raises:
        AloeError: the iteration is not finished, its method has no critic, `config` contradicts it, or the store does not have all its episodes.
    """
    result = read_result(iteration)
    if not result.critic:
        raise AloeError(f"{iteration}: method '{result.method}' has no critic to report on")
    method, facts, version = load_critic(iteration / CRITIC_FILE)
    started = read_started(iteration, facts, config)
    store = ReplayStore(iteration.parent / STORE)
    policy, whose = _valued_policy(iteration, result, robot)
    replay = started_replay(iteration, started, store, policy)
    changed = replay.digest != started.digest
    page = Page(iteration / "report")
    page.folder.mkdir(parents=True, exist_ok=True)
    _summary(page, result, facts.policy_version, version, whose)

    on_step("learning curves")
    page.section("Learning")
    page.figure("learning", figures.learning_curves(read_metrics(iteration)))

    on_step("replay")
    composition = replay_report(store, replay.samples_of.episodes)
    page.section("Replay", "What the critic learned from, by who drove. A tick is one control step.")
    if changed:
        page.text(
            "Since the critic learned, these episodes were labelled anew, or the store was made anew: this page shows what is there now."
        )
    page.figure("replay", figures.replay_composition(composition.rows))
    page.table(
        ("iteration", "episodes", "successes", "take-over (ticks)", "take-over (episodes)"),
        [
            (
                str(i.iteration),
                str(i.episodes),
                str(i.successes),
                f"{100 * i.takeover_rate:.1f} %",
                f"{100 * i.takeover_episodes:.1f} %",
            )
            for i in composition.iterations
        ],
    )

    generator = np.random.default_rng(seed)
    index = np.sort(generator.permutation(np.flatnonzero(replay.samples_of.train_critic))[:JUDGED])
    on_step("values of the replay")
    judged = judgement.judge(replay, method, policy, index, seed=seed)
    add_episodes(page, replay, method, policy, robot, different(replay, episodes), seed, rerun, on_step)

    critic = getattr(method, "critic", None)
    if critic is not None and critic.config.horizon:
        on_step("same-state and support histograms")
        same = judgement.same_state_values(replay, critic, policy, seed=seed)
        note = "At states of failed fragments: the chunk that was executed, and the one executed at the most similar state of a success. V should lie between."
        page.section("Failing and succeeding chunks from the same state", note)
        if same:
            page.figure("same_state", figures.histograms(same, f"{len(same['V'])} states of failures"))
        else:
            page.text("The replay has no failures or no successes to compare.")
        support = judgement.support_values(replay, critic, policy, seed=seed)
        page.section(
            "Chunks outside of the data",
            "A sound critic does not value chunks that were never executed at a state above those that were. "
            "Nothing but the minimum over its heads sees to it, unless the method is pessorl.",
        )
        page.figure("support", figures.histograms(support, f"{len(support['executed here'])} states of the replay"))

    _accuracy(page, replay, judged, changed)
    if progress:
        on_step("progress")
        _progress(page, replay)
    _fragments(page, replay, judged)
    file = page.folder / "index.html"
    replace_file(file, page.html(f"Critic report: {result.version}"))
    return file


def _valued_policy(iteration: Path, result: ImproveResult, robot: RobotDescription) -> tuple[TrainablePolicy, str]:
    """The policy that V and the advantages are of, and its version: the one whose value the critic learned, if the iteration before made it, else the improved
    one."""
    parent = iteration.parent / f"{result.iteration - 1:03d}" / POLICY
    if (parent / POLICY_FILE).exists():
        policy, version = load_trainable(parent, robot)
        if version == result.parent_version:
            return policy, version
    return load_trainable(Path(result.policy), robot)


def _summary(page: Page, result: ImproveResult, judged_policy: str, critic_version: str, whose: str) -> None:
    page.table(
        ("", ""),
        [
            ("policy made", result.version),
            ("from", result.parent_version),
            ("method", result.method),
            ("critic", f"{critic_version}, learned the value of {judged_policy}"),
            ("replay", f"{result.transitions} chunks of {result.episodes} episodes, {result.successes} successes"),
            (
                "chunks used by the actor",
                f"{100 * result.used_share:.0f} %, worth {100 * result.effective_share:.0f} % of them after weighting",
            ),
        ],
    )
    page.text(
        "Values are discounted scaled returns: 0 is success now, -1 a success that never comes, less than -1 a failure."
    )
    against = (
        "the policy whose value the critic learned, and against which chunks were weighed."
        if whose == judged_policy
        else f"the policy that was made. Chunks were weighed against {judged_policy}, which this run does not hold, by other advantages."
    )
    page.text(f"V, and so every advantage, is that of {whose}, {against}")


def _accuracy(page: Page, replay: StoreReplay, judged: judgement.Judgement, changed: bool) -> None:
    actual = replay.samples_of.return_to_go[judged.index]
    known = np.isfinite(actual)
    learned = "The critic has learned from these data" + (" as they were then." if changed else ".")
    page.section(
        "How right the values are",
        f"Against the discounted return that followed, where the fragment ended with an outcome. {learned}",
    )
    orders = judgement.value_orders(replay, judged)
    numbers: dict[str, float] = {}
    lines = []
    if known.any():
        error = np.abs(judged.q[known] - actual[known])
        numbers |= {"absolute_error": float(error.mean()), "spearman": spearman(judged.q[known], actual[known])}
        lines.append(
            f"mean absolute error {error.mean():.3f}; rank correlation with the return {spearman(judged.q[known], actual[known]):.2f}"
        )
        page.figure("calibration", figures.calibration(calibration_curve(judged.q[known], actual[known])))
        if judged.head_std.any():
            correlation = spearman(judged.head_std[known], error)
            page.figure("spread", figures.spread_against_error(judged.head_std[known], error, correlation))
            lines.append(
                f"the spread of the heads ranks the errors with correlation {correlation:.2f}: it is not a calibrated uncertainty"
            )
    if len(orders):
        lines.append(
            f"VOC, rank correlation of value and time on {len(orders)} successful fragments: {np.nanmean(orders):.2f}"
        )
        shares = judgement.ordered_shares(replay, judged)
        lines.append(
            f"V puts {100 * np.nanmean(shares):.0f} % of the pairs of instants of a success in the right order; 50 % is chance"
        )
        numbers |= {"voc": float(np.nanmean(orders)), "ordered_share": float(np.nanmean(shares))}
    for line in lines:
        page.text(line)
    replace_file(
        page.folder / NUMBERS_FILE,
        json.dumps({key: x for key, x in numbers.items() if np.isfinite(x)}, indent=1) + "\n",
    )


def _progress(page: Page, replay: StoreReplay) -> None:
    page.section(
        "Progress",
        "VITA's value of progress, trained on a part of the successes, judged by its order along the others.",
    )
    episodes = success_features(replay)
    if len(episodes) < 4:
        page.text(f"{len(episodes)} successes are too few to train and to judge it.")
        return
    _, found = train_progress(episodes)
    page.text(f"VOC {found.voc:.2f} on {found.held_out} successes, trained on {found.train}.")


def _fragments(page: Page, replay: StoreReplay, judged: judgement.Judgement) -> None:
    rows = judgement.fragment_table(replay, judged)
    half = TABLE_ROWS // 2
    shown = rows if len(rows) <= TABLE_ROWS else rows[:half] + rows[-half:]
    page.section("Advantage by fragment", f"Worst and best of {len(rows)} fragments.")
    page.table(
        ("episode", "from tick", "ticks", "driver", "outcome", "mean advantage", "Q at first", "Q at last"),
        [
            (
                r.episode,
                str(r.start_step),
                str(r.steps),
                r.source,
                r.outcome,
                f"{r.advantage:+.3f}",
                f"{r.q_first:.3f}",
                f"{r.q_last:.3f}",
            )
            for r in shown
        ],
        [("good" if r.outcome == Outcome.SUCCESS.name.lower() else "bad") for r in shown],
    )
