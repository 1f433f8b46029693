"""Critic targets on a task small enough for a pencil.

    .venv/bin/python examples/05_critic_targets.py

A robot takes N steps, reward -1 each, and fails on the last, which costs C. The value with d steps to go is -(1 - gamma^(d-1)) / (1 - gamma) - gamma^(d-1) C.
Chunk TD (Eq. 7) with any back-up length finds it; a target that bootstraps through the end, as if failing went on for ever, does not.
"""

import torch

from aloe_critic.targets import discounted_sum, td_target

GAMMA, LENGTH, FAILURE_COST = 0.99, 20, 20.0


def closed_form(steps_left: torch.Tensor) -> torch.Tensor:
    """Return with `steps_left` >= 1 steps to go."""
    before = GAMMA ** (steps_left - 1)
    return -(1 - before) / (1 - GAMMA) - before * FAILURE_COST


def chunk_td(backup: int, mask_terminal: bool, sweeps: int = 2000) -> torch.Tensor:
    """Values `[LENGTH]` of the states 0 .. LENGTH - 1 by repeated targets, each backed up over at most `backup` steps."""
    state = torch.arange(LENGTH)
    steps = torch.minimum(torch.full_like(state, backup), LENGTH - state)  # a chunk at the end is partial
    k = torch.arange(backup)
    executed = k < steps[:, None]
    last = state[:, None] + k == LENGTH - 1
    rewards = torch.where(last, -FAILURE_COST, -1.0).double()
    chunk_return = discounted_sum(rewards, executed.double(), GAMMA)
    ended = (state + steps == LENGTH) & mask_terminal
    bootstrap_discount = torch.where(ended, 0.0, GAMMA ** steps.double())
    value = torch.zeros(LENGTH, dtype=torch.float64)
    for _ in range(sweeps):
        following = value[(state + steps).clamp(max=LENGTH - 1)]
        value, _ = td_target(chunk_return, bootstrap_discount, following)
    return value


def main() -> None:
    """Print how far chunk TD ends from the closed form."""
    exact = closed_form(LENGTH - torch.arange(LENGTH).double())
    print(f"value {LENGTH} steps before the end: {exact[0]:.4f}, on the last step: {exact[-1]:.4f}")
    for backup in (1, 5, 15, LENGTH):
        print(f"back-up over {backup:2} steps: largest error {(chunk_td(backup, True) - exact).abs().max():.1e}")
    wrong = chunk_td(5, mask_terminal=False)
    print(f"without the terminal mask: largest error {(wrong - exact).abs().max():.1f}")


if __name__ == "__main__":
    main()
