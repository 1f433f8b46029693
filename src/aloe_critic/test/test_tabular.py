"""Chunk TD on a tabular MDP converges to the closed-form value of the policy.

A corridor of five cells; step right (1) with reward -.1 or wait (0) with reward -.2. Leaving on the right is a success (reward 0, terminal), the cell
`TRAP` entered by waiting twice in cell 2 is a failure. The policy draws whole chunks and is stochastic. Samples are all (cell, chunk) pairs, each with
every next chunk in proportion to its probability, so that the least-squares fit of the targets is their expectation.
"""

import itertools

import pytest
import torch

from aloe_critic.losses import critic_loss
from aloe_critic.targets import discounted_sum, reduce_heads, td_target

GAMMA = 0.9
CELLS, SUCCESS, TRAP = 4, 4, 5
HORIZONS = [1, 2, 3, 5]


def step(cell, action):
    """(next cell, reward, terminal)."""
    if action == 1:
        return cell + 1, 0.0 if cell + 1 == SUCCESS else -0.1, cell + 1 == SUCCESS
    if cell == 2:
        return TRAP, -1.0, True
    return cell, -0.2, False


def chunks(horizon):
    return list(itertools.product((0, 1), repeat=horizon))


def policy(cell, horizon):
    """Probability of each chunk in quarters: a quarter walks, a quarter waits once and walks, half hesitates at the end (or as far as the length goes)."""
    walk = (1,) * horizon
    wait = (0,) + walk[1:]
    hesitate = walk[:-1] + (0,) if cell != 2 else walk
    probability = dict.fromkeys(chunks(horizon), 0)
    for chunk, quarters in ((walk, 1), (wait, 1), (hesitate, 2)):
        probability[chunk] += quarters
    return probability


def execute(cell, chunk, steps):
    """Rewards, mask, last cell and terminal of the first `steps` actions of a chunk."""
    rewards, mask, terminal = [], [], False
    for action in chunk[:steps]:
        if terminal:
            rewards.append(-99.0)  # what lies behind an end must not matter
            mask.append(0.0)
            continue
        cell, reward, terminal = step(cell, action)
        rewards.append(reward)
        mask.append(1.0)
    return rewards, mask, cell, terminal


def closed_form(horizon, backup):
    """Q^pi(cell, chunk) by a linear solve over V, for a policy that draws a new chunk every `backup` steps."""
    matrix, constant = torch.eye(CELLS, dtype=torch.float64), torch.zeros(CELLS, dtype=torch.float64)
    outcomes = {}
    for cell in range(CELLS):
        for chunk, quarters in policy(cell, horizon).items():
            value, discount, at, terminal = 0.0, 1.0, cell, False
            for action in chunk[:backup]:
                at, reward, terminal = step(at, action)
                value, discount = value + discount * reward, discount * GAMMA
                if terminal:
                    break
            outcomes[cell, chunk] = value, 0.0 if terminal else discount, at
            constant[cell] += quarters / 4 * value
            if not terminal:
                matrix[cell, at] -= quarters / 4 * discount
    v = torch.linalg.solve(matrix, constant)
    return {key: r + g * (v[at].item() if g else 0.0) for key, (r, g, at) in outcomes.items()}, v


def fit(horizon, backup, *, heads=2, cut_after=None):
    """The table [cells, chunks, K] that chunk TD settles at; `cut_after` truncates every sample after that many steps."""
    table = chunks(horizon)
    index = {chunk: i for i, chunk in enumerate(table)}
    rows = []
    for cell, chunk in itertools.product(range(CELLS), table):
        rewards, mask, at, terminal = execute(cell, chunk, min(backup, cut_after or backup))
        for following, quarters in policy(0 if terminal else at, horizon).items():
            rows += [(cell, index[chunk], rewards, mask, 0 if terminal else at, terminal, index[following])] * quarters
    cell, chunk, rewards, mask, at, terminal, following = (torch.tensor(column) for column in zip(*rows, strict=True))
    mask = mask.double()
    chunk_return = discounted_sum(rewards.double(), mask, GAMMA)
    bootstrap_discount = torch.where(terminal, 0.0, GAMMA ** mask.sum(dim=1))

    q = torch.zeros(CELLS, len(table), heads, dtype=torch.float64)
    for _ in range(200):  # fitted Q iteration: each pass is the exact minimiser of Eq. 8 for frozen targets
        target, _ = td_target(chunk_return, bootstrap_discount, reduce_heads(q[at, following], "min"))
        total = torch.zeros(CELLS, len(table), dtype=torch.float64).index_put_((cell, chunk), target, accumulate=True)
        count = torch.zeros_like(total).index_put_((cell, chunk), torch.ones_like(target), accumulate=True)
        q = (total / count).unsqueeze(-1).expand(-1, -1, heads).clone()
    q.requires_grad_()
    loss, _ = critic_loss(q[cell, chunk], target)
    loss.backward()
    assert q.grad.abs().max() < 1e-6  # the pass above is a stationary point of the loss that is trained
    return q.detach(), index


@pytest.mark.parametrize(("backup", "horizon"), [(n, h) for n in HORIZONS for h in HORIZONS if n <= h])
def test_chunk_td_finds_the_value_of_the_policy(backup, horizon):
    q, index = fit(horizon, backup)
    expected, _ = closed_form(horizon, backup)
    for (cell, chunk), value in expected.items():
        assert q[cell, index[chunk]].tolist() == pytest.approx([value, value], abs=1e-3)


def test_one_step_chunks_are_one_step_td():
    """n = h = 1 against the textbook Bellman equation, written out by hand for the last two cells."""
    q, _ = fit(1, 1)
    # cell 3: walk succeeds (0); wait costs .2 and stays. The policy walks with 1/4 and waits with 3/4.
    v3 = (0.25 * 0 + 0.75 * -0.2) / (1 - 0.75 * GAMMA)
    assert q[3, 1].tolist() == pytest.approx([0.0, 0.0])
    assert q[3, 0].tolist() == pytest.approx([-0.2 + GAMMA * v3] * 2, abs=1e-3)
    assert q[2, 0].tolist() == pytest.approx([-1.0, -1.0])  # the trap is terminal


def test_a_truncated_chunk_is_worth_its_steps_and_the_value_where_it_was_cut():
    q, index = fit(5, 5, cut_after=2)
    _, v = closed_form(5, 2)  # cutting everything after two steps is a policy that draws anew every two steps
    for chunk in ((1, 1, 0, 0, 0), (0, 1, 1, 1, 1)):
        rewards, _, at, terminal = execute(0, chunk, 2)
        assert not terminal
        expected = rewards[0] + GAMMA * rewards[1] + GAMMA**2 * v[at].item()
        assert q[0, index[chunk], 0].item() == pytest.approx(expected, abs=1e-3)


def test_what_follows_a_terminal_inside_a_chunk_does_not_matter():
    q, index = fit(5, 5)
    values = [q[3, index[(1, *rest)], 0].item() for rest in chunks(4)]
    assert values == pytest.approx([0.0] * len(values))
