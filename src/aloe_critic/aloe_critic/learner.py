"""The learner: N_Q critic steps, one judgement of the replay, N_pi actor steps (Algorithm 1, one iteration), resumable after a kill at any step.

Every random number of a step comes from a generator seeded by (seed, phase, step), so a resumed run repeats the interrupted one bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Source
from aloe_critic.critic import on_device
from aloe_critic.critic_batches import CriticBatches
from aloe_critic.learner_config import Cancelled, Diverged, LearnerConfig, Progress, Replay, SourceName, learning_rate
from aloe_critic.losses import effective_share
from aloe_critic.methods.base import Method
from aloe_critic.metrics import Metrics
from aloe_policy.protocol import TrainablePolicy
from aloe_policy.replay import SourceSampler
from aloe_policy.training_state import (
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    random_numbers,
    read_state,
    trained_tensors,
    write_state,
)

__all__ = ["STATE_FILE", "Cancelled", "Diverged", "Learner", "LearnerConfig", "Progress", "Replay", "learning_rate"]

# Phases, first part of a step's random key after the seed; 1: `critic_batches.TABLE`.
CRITIC, EVALUATE, ACTOR, CHOICE = 0, 2, 3, 4
STATE_FILE = "learner.safetensors"
AVERAGE = "actor_average/"  # keys of the averaged weights in the state


class Learner:
    """One iteration of policy improvement."""

    def __init__(
        self,
        method: Method,
        policy: TrainablePolicy,
        replay: Replay,
        config: LearnerConfig,
        folder: Path,
        accelerator: Accelerator | None = None,
        on_progress: Callable[[Progress], bool | None] = lambda progress: None,
    ) -> None:
        """Continues from `folder` if it holds an interrupted run of the same configuration and data.

        Args:
            method: turns replay into weights for the actor; its critic is trained in place.
            policy: the current policy, trained in place (or wrapped, see `Method.actor`).
            folder: for checkpoints and metrics.
            on_progress: called often; returning False cancels.

        Raises:
            AloeError: nothing to learn from, `folder` belongs to another run, or a mixed precision that scales the loss.
        """
        if not len(replay.start):
            raise AloeError("the replay holds no chunk to learn from")
        self.config, self.replay, self.folder, self.on_progress = config, replay, Path(folder), on_progress
        self.accelerator = accelerator or Accelerator()
        if self.accelerator.mixed_precision == "fp16":
            raise AloeError(
                "mixed precision 'fp16' scales the loss, which the learner's optimizers do not undo: use 'bf16' or 'no'"
            )
        self.device = self.accelerator.device
        self.metrics = Metrics(self.folder)
        self.method = method.to(self.device)
        self.behaviour = policy.to(
            self.device
        )  # whose chunks the critic judges; stands still unless it is the actor itself
        self.critic_step = self.actor_step = 0
        self.weight_N: Tensor | None = None  # actor weight of every sample, once the critic has judged them
        on_table = lambda done: self._progress("table", done, replay.ticks, float("nan"))  # noqa: E731
        judged = len(self._to_judge(refresh=0))
        self.batches = CriticBatches(method, replay, config, self.device, self.folder, judged, on_table)
        self._critic_optimizer = self._optimizer(self.method, config.critic_lr) if method.learns else None
        self._identity = {
            "config": asdict(config),
            "method": f"{method.name} {getattr(method, 'config', None)} {method}",
            "replay": replay.digest,
        }

    def run(self) -> TrainablePolicy:
        """Learns to the end and returns the improved policy, in evaluation mode.

        Raises:
            Diverged: a loss or gradient is not finite, or the critic leaves the range of possible returns; says which and when.
            Cancelled: the progress callback returned False.
        """
        method, config, state = self.method, self.config, self.folder / STATE_FILE
        self._usable(method.weights(torch.zeros(len(self.replay.start)), self.replay.facts))  # else: say so now
        tensors = self.learn_critic()
        if self.weight_N is None:
            self.weight_N = self._judge(refresh=0)
        self.actor = method.actor(self.behaviour).to(self.device)
        self._actor_optimizer = self._optimizer(self.actor, config.actor_lr)
        if self.actor_step:
            load_module("actor", self.actor, tensors, state)
            load_optimizer("actor_optimizer", self._actor_optimizer, tensors)
        self._average = {
            name: tensors[AVERAGE + name].to(self.device) if self.actor_step else weight.detach().clone()
            for name, weight in self._trained_weights()
        }
        self._actor_phase()
        self._save()
        with torch.no_grad():
            for name, weight in self._trained_weights():
                weight.copy_(self._average[name])
        return self.actor.eval()

    def learn_critic(self) -> dict[str, Tensor]:
        """The critic steps alone, as off-policy evaluation needs them; returns the tensors of the state that was resumed.

        Raises:
            Diverged, Cancelled: see `run`.
        """
        tensors = self._resume(self.folder / STATE_FILE)
        if self.method.learns and self.critic_step < self.config.critic_steps:
            self._critic_phase()
        return tensors

    def _critic_phase(self) -> None:
        config, method = self.config, self.method
        module: nn.Module = self.accelerator.prepare(method)
        optimizer = self._critic_optimizer
        assert optimizer is not None
        teaching = self.replay.facts.train_critic.nonzero().squeeze(1)
        if not len(teaching):
            raise AloeError(
                f"the protocol lets no chunk train the critic that '{method.name}' needs; use the protocol 'aloe'"
            )
        sampler = self._sampler(teaching, config.source_shares)
        for step, generator in self._steps(CRITIC, self.critic_step, config.critic_steps):
            index = teaching[self._draw(sampler, CRITIC, step, config.batch_size)]
            batch = self.batches.to_teach(self.behaviour, index, generator)
            loss, info = module(batch)
            self._check_range(info, step)
            self._descend(
                "critic",
                loss,
                module,
                optimizer,
                learning_rate(config.critic_lr, step, config.critic_steps, config.warmup_steps),
                step,
            )
            method.after_step()
            self.critic_step = step + 1
            self._after_step("critic", self.critic_step, config.critic_steps, loss, info)

    def _actor_phase(self) -> None:
        config, method = self.config, self.method
        module: nn.Module = self.accelerator.prepare(self.actor)
        module.train()
        assert self.weight_N is not None
        usable = self._usable(self.weight_N)
        there = {Source(s).name.lower() for s in self.replay.facts.source[usable].unique().tolist()}
        shares = {name: share for name, share in config.source_shares.items() if name in there}
        sampler, size = self._sampler(usable, shares), config.actor_batch_size or config.batch_size
        for step, generator in self._steps(ACTOR, self.actor_step, config.actor_steps):
            if config.refresh and step and step % config.refresh == 0 and method.needs_policy_chunks:
                self.weight_N = self._judge(refresh=step)
                module.train()  # to judge it, the actor has acted
                usable = self._usable(self.weight_N)
                sampler = self._sampler(usable, shares)
            index = usable[self._draw(sampler, ACTOR, step, size)]
            assert self.weight_N is not None
            batch = on_device(self.replay.chunks(index), self.device)
            if config.hold_at_end:
                batch["action_mask"] = batch["action_mask"] | self.replay.facts.held[index, None].to(self.device)
            loss, info = method.actor_loss(module, batch, self.weight_N[index].to(self.device), generator)
            self._descend(
                "actor",
                loss,
                module,
                self._actor_optimizer,
                learning_rate(config.actor_lr, step, config.actor_steps, config.warmup_steps),
                step,
            )
            self.actor_step = step + 1
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            weights = [weight.detach() for _, weight in self._trained_weights()]
            torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)
            self._after_step("actor", self.actor_step, config.actor_steps, loss, info)

    def _judge(self, refresh: int) -> Tensor:
        """Advantage and then weight of the samples that are to teach the actor, 0 for the others, `[N]` on the CPU."""
        chosen = self._to_judge(refresh)
        advantages: list[Tensor] = []
        for number, index in enumerate(chosen.split(1024) if self.method.learns else ()):
            generator = random_numbers(self.config.seed, EVALUATE, refresh, number)
            batch = self.batches.to_judge(self.actor if refresh else self.behaviour, index, generator, refresh > 0)
            advantages.append(self.method.evaluate(batch)["advantage"].cpu())
            self._progress("evaluate", int(sum(map(len, advantages))), len(chosen), float("nan"))
        advantage_n = torch.cat(advantages) if advantages else torch.zeros(len(chosen))
        weight_n = self.method.weights(advantage_n, self.replay.facts.at(chosen))
        self._log(
            "weights",
            refresh,
            {
                "advantage_mean": advantage_n.mean(),
                "advantage_std": advantage_n.std(correction=0),
                "weight_effective": effective_share(weight_n.abs()),
                "used_share": (weight_n != 0).float().mean(),
            },
        )
        weight_N = torch.zeros(len(self.replay.start), dtype=weight_n.dtype)
        weight_N[chosen] = weight_n
        return weight_N

    def _to_judge(self, refresh: int) -> Tensor:
        """Samples to judge, int64 `[n]`: all; or, of a replay that is longer than the actor's steps can show it, as many as these, drawn by `source_shares`.

        Our choice: so the cost of an improvement is bounded by its steps, not by all that was ever recorded.
        """
        config, facts, total = self.config, self.replay.facts, len(self.replay.start)
        steps = min(config.refresh or config.actor_steps, config.actor_steps - refresh)
        shown = steps * (config.actor_batch_size or config.batch_size) * self.accelerator.num_processes
        if not 0 < shown < total or not self.method.learns:
            return torch.arange(total)
        usable = self.method.weights(torch.zeros(total), facts) != 0
        share = {Source[name.upper()]: value for name, value in config.source_shares.items()}
        likely = torch.zeros(total, dtype=torch.float64)
        for source in facts.source[usable].unique().tolist():
            those = usable & (facts.source == source)
            likely[those] = share.get(Source(source), 0.0) / those.sum() if share else 1.0
        noise = torch.rand(total, generator=random_numbers(config.seed, CHOICE, refresh), dtype=torch.float64)
        order = likely.log() - (-noise.log()).log()  # Gumbel: the first n are a draw without replacement
        return order.topk(min(shown, int((likely > 0).sum()))).indices.sort().values

    def _trained_weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self.actor.named_parameters() if weight.requires_grad]

    def _usable(self, weight_N: Tensor) -> Tensor:
        usable = weight_N.nonzero().squeeze(1)
        if not len(usable):
            raise AloeError(
                f"method '{self.method.name}' leaves none of the {len(weight_N)} recorded chunks to learn from: record successes or demonstrations first"
            )
        return usable

    def _steps(self, phase: int, first: int, total: int) -> Iterator[tuple[int, torch.Generator]]:
        """(step, this process's generator) for each step that is still to be done."""
        for step in range(first, total):
            generator = random_numbers(self.config.seed, phase, step, self.accelerator.process_index)
            torch.manual_seed(generator.initial_seed())  # for layers that draw by themselves, like dropout
            yield step, generator

    def _sampler(self, population: Tensor, shares: Mapping[SourceName, float]) -> SourceSampler:
        wanted = {Source[name.upper()]: share for name, share in shares.items()}
        return SourceSampler(self.replay.facts.source[population].numpy(), wanted or None)

    def _draw(self, sampler: SourceSampler, phase: int, step: int, size: int) -> Tensor:
        """This process's share `[size]` of a step's batch, which does not depend on the process."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        numbers = np.random.default_rng((self.config.seed, phase, step))
        return torch.from_numpy(sampler.draw(world * size, numbers))[rank * size : (rank + 1) * size]

    def _optimizer(self, module: nn.Module, lr: float) -> AdamW:
        trainable = [p for p in module.parameters() if p.requires_grad]
        return AdamW(
            trainable, lr=lr, betas=(0.9, 0.95), weight_decay=self.config.weight_decay, fused=True
        )  # betas: paper

    def _descend(self, what: str, loss: Tensor, module: nn.Module, optimizer: AdamW, lr: float, step: int) -> None:
        """One optimizer step, unless loss or gradient say that the run has diverged."""
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], self.config.grad_clip)
        for name, value in (("loss", loss), ("gradient", norm)):
            if not torch.isfinite(value):
                raise Diverged(self._divergence(what, step, f"its {name} is {value.item()}"))
        optimizer.step()

    def _check_range(self, info: dict[str, Tensor], step: int) -> None:
        """A critic whose mean lies far outside of what any policy can earn feeds on its own errors, long before anything overflows."""
        low, high = self.replay.return_range
        q, reach = (
            info.get("q_mean"),
            3 * max(high - low, 1e-6),
        )  # our choice: generous, a fresh critic may start anywhere
        if q is not None and not low - reach <= q <= high + reach and torch.isfinite(q):
            raise Diverged(
                self._divergence("critic", step, f"values of {q:.3g} while returns lie within [{low:.3g}, {high:.3g}]")
            )

    def _divergence(self, what: str, step: int, why: str) -> str:
        file = self.folder / STATE_FILE
        kept = f"the checkpoint {file} is from before" if file.exists() else "nothing was saved before"
        return f"the {what} diverged at step {step}: {why}; {kept}. Lower {what}_lr, or look at the rewards and actions of the replay"

    def _after_step(self, stage: str, step: int, total: int, loss: Tensor, info: dict[str, Tensor]) -> None:
        config = self.config
        if step % config.log_every == 0 or step == total:
            self._log(stage, step, info)
        if step % config.checkpoint_every == 0 or step == total:
            self._save()
        self._progress(stage, step, total, loss.detach())

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        tensors = module_tensors("method", self.method)
        if self._critic_optimizer is not None:
            tensors |= optimizer_tensors("critic_optimizer", self._critic_optimizer)
        if self.weight_N is not None:
            tensors["weights"] = self.weight_N
        if self.actor_step:
            tensors |= trained_tensors("actor", self.actor) | optimizer_tensors(
                "actor_optimizer", self._actor_optimizer
            )
            tensors |= {AVERAGE + name: value for name, value in self._average.items()}
        facts = {"critic_step": self.critic_step, "actor_step": self.actor_step, "identity": self._identity}
        write_state(self.folder / STATE_FILE, tensors, facts)

    def _resume(self, state: Path) -> dict[str, Tensor]:
        """Takes up an interrupted run, if there is one; returns its tensors."""
        if not state.exists():
            self._agree(state)
            self._forget(0, 0)
            return {}
        tensors, facts = read_state(state)
        for key, value in self._identity.items():
            if facts["identity"][key] != value:
                raise AloeError(
                    f"{state} belongs to a run with another {key}; give this run its own folder, or delete that one"
                )
        self.critic_step, self.actor_step = facts["critic_step"], facts["actor_step"]
        load_module("method", self.method, tensors, state)
        if self._critic_optimizer is not None:
            load_optimizer("critic_optimizer", self._critic_optimizer, tensors)
        self.weight_N = tensors.get("weights")
        self._agree(state)
        self._forget(self.critic_step, self.actor_step)
        return tensors

    def _agree(self, state: Path) -> None:
        """Only the main process saves: a process that does not see its file would wait for the others at another step, for ever."""
        own = torch.tensor([self.critic_step, self.actor_step], device=self.device)
        of_main, *others = self.accelerator.gather(own).view(-1, 2).tolist()
        for rank, steps in enumerate(others, 1):
            if steps != of_main:
                raise AloeError(
                    f"process {rank} would go on from critic and actor step {steps}, process 0 from {of_main}: "
                    f"{state} must be one file in a folder that all machines share"
                )

    # -- what a person sees -------------------------------------------------------------------------------------------------------------------

    def _progress(self, stage: str, step: int, total: int, loss: Tensor | float) -> None:
        now = time.monotonic()
        name, since, first = getattr(self, "_stage", ("", now, 0))
        if name != stage:
            self._stage = (stage, now, step)
            since, first = now, step
        eta = (total - step) * (now - since) / max(1, step - first)
        if self.on_progress(Progress(stage, step, total, float(loss), eta)) is False:
            raise Cancelled

    def _log(self, stage: str, step: int, info: dict[str, Tensor]) -> None:
        if self.accelerator.is_main_process:
            self.metrics.add(stage, step, {k: float(v) for k, v in info.items()})

    def _forget(self, critic_step: int, actor_step: int) -> None:
        if self.accelerator.is_main_process:
            self.metrics.forget_after(critic_step, actor_step)
