"""Behaviour cloning: the policy's own loss (flow matching: paper Eq. 15 with weight 1) on the chunks of good episodes.

One loop for one process or many (`accelerate launch`). All randomness of a step is derived from (seed, step), so a resumed run continues bit
for bit, and a step's global batch does not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor
from torch.optim import AdamW
from torch.utils.tensorboard import SummaryWriter

from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_policy import training_state as state
from aloe_policy.bc_config import BcConfig
from aloe_policy.checkpoint import PolicySpec
from aloe_policy.demonstrations import ChunkSource
from aloe_policy.flow import FlowPolicy, check_config
from aloe_policy.normalisation import Normalisation
from aloe_policy.protocol import SampleBatch, TrainablePolicy, to_device

STATE_FILE = "training.safetensors"
POLICY_FOLDER = "policy"
BATCHES, NOISE = 0, 1  # purposes of random numbers
PATIENCE = timedelta(days=1)  # longest wait of processes for the one that reads bags and encodes images


def launched_processes() -> Accelerator:
    """This process among those that `accelerate launch` or `torchrun` started; where there is no GPU they train on CPUs."""
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    cpu = several and not torch.accelerator.is_available()
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])


def check_run(config: BcConfig, robot: RobotDescription, processes: int, policy: TrainablePolicy | None) -> None:
    """Whether a run is possible, as far as that is known before any bag is read; `policy` None: it makes a fresh one.

    Raises:
        AloeError: no; the message names the key.
    """
    _check_split(config, processes)
    if policy is None:
        check_config(_fresh_spec(config, robot), config.policy)


def make_policy(config: BcConfig, robot: RobotDescription, data: ChunkSource) -> FlowPolicy:
    """A fresh policy, normalised by the data and initialised by the seed.

    Raises:
        AloeError: neither cameras nor object state to see the task by.
    """
    vectors = dict(data.vectors())
    if config.cameras:
        vectors.pop("object_state", None)
    elif "object_state" not in vectors:
        raise AloeError(
            "the bags hold no object state (only a simulated task has one); name cameras in the configuration"
        )
    spec = _fresh_spec(config, robot, vectors["object_state"].shape[1] if "object_state" in vectors else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return FlowPolicy(spec, config.policy, Normalisation.of_data(vectors))


class BcTrainer:
    """A run in the folder `output`: `training.safetensors` (to resume from), `policy/` (EMA weights), `tensorboard/`."""

    def __init__(
        self,
        policy: TrainablePolicy,
        data: ChunkSource,
        config: BcConfig,
        output: Path,
        parent: str = "",
        accelerator: Accelerator | None = None,
    ) -> None:
        """Prepares the run. Only weights that require a gradient are trained.

        Args:
            parent: version of the checkpoint that `policy` is from; empty: it is fresh.
            accelerator: the processes that train; None: whatever `accelerate` finds.

        Raises:
            AloeError: the batch cannot be split evenly.
        """
        self.accelerator = accelerator or Accelerator()
        _check_split(config, self.accelerator.num_processes)
        self.data, self.config, self.output, self.parent = data, config, Path(output), parent
        self.step = 0
        self.policy: TrainablePolicy = policy.to(self.accelerator.device)
        self.ema = {key: value.clone() for key, value in self._moving().items()}
        optimizer = AdamW(
            [parameter for parameter in self.policy.parameters() if parameter.requires_grad],
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        module = torch.compile(self.policy) if config.compile else self.policy
        self.model, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._config, self._data_hash = _resumable(config), _fingerprint(data)

    def run(self, on_step: Callable[[int, float], None] = lambda step, loss: None) -> None:
        """Trains from the current step to the last; `on_step(steps done, mean loss)` is called every `log_every` steps in the main process.

        A run that has done all its steps writes its policy once more, in case it was killed before it had.

        Raises:
            AloeError: a loss or a weight is no longer finite; what was saved last is from before.
        """
        config = self.config
        if self.step >= config.steps:
            if self.accelerator.is_main_process:
                self._save_policy()
            return
        self.model.train()
        with contextlib.ExitStack() as stack:
            writer = None
            if self.accelerator.is_main_process:
                writer = SummaryWriter(self.output / "tensorboard", purge_step=self.step)
                stack.callback(writer.close)
            began, first = time.monotonic(), self.step
            losses: list[Tensor] = []
            while self.step < config.steps:
                losses.append(self._train_step())
                last = self.step == config.steps
                saving = self.step % config.save_every == 0 or last
                if saving:
                    self._check_finite(losses)
                if self.step % config.log_every == 0 or last:
                    loss = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))
                    losses = []
                    if not math.isfinite(loss):
                        raise self._diverged()
                    if writer is not None:
                        rate = (self.step - first) * config.batch_size / (time.monotonic() - began)
                        writer.add_scalar("loss", loss, self.step)
                        writer.add_scalar("learning_rate", self.learning_rate(), self.step)
                        writer.add_scalar("samples_per_second", rate, self.step)
                        on_step(self.step, loss)
                if saving:
                    self.save()

    def learning_rate(self) -> float:
        """Of the step to come: linear warm-up, then cosine to zero."""
        config = self.config
        warm_up = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * self.step / config.steps))

    def save(self) -> None:
        """Writes the state of the run and then the policy; a kill leaves each as it was before or as it is after."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        tensors = {
            **state.trained_tensors("model", self.policy),
            **{f"ema/{key}": value for key, value in self.ema.items()},
            **state.optimizer_tensors("optimizer", self.optimizer.optimizer),
        }
        facts = {"config": self._config, "data": self._data_hash, "parent": self.parent, "step": self.step}
        state.write_state(self.output / STATE_FILE, tensors, facts)
        self._save_policy()

    def _save_policy(self) -> None:
        """Writes the checkpoint, of the averaged weights."""
        moving = self._moving()
        kept = {key: value.clone() for key, value in moving.items()}
        torch._foreach_copy_(list(moving.values()), list(self.ema.values()))
        self.policy.save(self.output / POLICY_FOLDER, f"{self.config.name}-0")
        torch._foreach_copy_(list(moving.values()), list(kept.values()))

    def resume(self) -> None:
        """Continues the run in `output`.

        Raises:
            AloeError: there is none, or it was started with another configuration, other data or another policy; the message names the key.
        """
        file = self.output / STATE_FILE
        tensors, facts = state.read_state(file)
        for key, value in self._config.items():
            if facts["config"].get(key) != value:
                raise AloeError(
                    f"{file} was started with {key} = {facts['config'].get(key)}, not {value}; use another folder"
                )
        if facts["parent"] != self.parent:
            started, now = (parent or "a fresh policy" for parent in (facts["parent"], self.parent))
            raise AloeError(f"{file} was started from {started}, not from {now}; use another folder")
        if facts["data"] != self._data_hash:
            raise AloeError(f"{file} was started with other demonstrations; use another folder")
        state.load_module("model", self.policy, tensors, file)
        for key, value in self.ema.items():
            value.copy_(tensors[f"ema/{key}"])
        state.load_optimizer("optimizer", self.optimizer.optimizer, tensors)
        self.step = int(facts["step"])

    def _moving(self) -> dict[str, Tensor]:
        """What training changes and an average makes sense of: weights that are not frozen, and buffers of real numbers."""
        return {key: value for key, value in state.trained_state(self.policy).items() if value.is_floating_point()}

    def _check_finite(self, losses: Sequence[Tensor]) -> None:
        """Raises `AloeError` in every process if one of its losses or weights is not finite in any process."""
        values = [*losses, *self._moving().values(), *self.ema.values()]
        broken = torch.stack([~value.isfinite().all() for value in values]).any()
        if self.accelerator.reduce(broken.float(), "sum"):
            raise self._diverged()

    def _diverged(self) -> AloeError:
        return AloeError(f"the training diverged before step {self.step}: lower learning_rate")

    def _batch(self, ticks: Tensor) -> SampleBatch:
        """Samples at `ticks [B]`, on the device; with `hold_at_end` rows past the end of a complete episode count as well."""
        batch = self.data.chunk_batch(ticks, self.policy.spec.horizon)
        at_end = batch.pop("at_end")
        if self.config.hold_at_end:  # our choice: rows that nothing is taught about are arbitrary, and may be executed
            mask = batch.pop("action_mask") | at_end[:, None]
            if not mask.all():
                batch["action_mask"] = mask
        return to_device(batch, self.accelerator.device)

    def _train_step(self) -> Tensor:
        """One gradient step; this process's mean loss."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        numbers = state.random_numbers(config.seed, BATCHES, self.step)
        ticks = torch.randint(len(self.data), (config.batch_size,), generator=numbers)  # our choice: with replacement
        parts = ticks.chunk(accelerator.num_processes * config.accumulate)
        total = torch.zeros((), device=accelerator.device)
        for k in range(config.accumulate):
            part = accelerator.process_index * config.accumulate + k
            batch = self._batch(parts[part])
            noise = state.random_numbers(config.seed, NOISE, self.step, part)
            wait = k < config.accumulate - 1  # gradients are exchanged with the last part
            with accelerator.no_sync(self.model) if wait else contextlib.nullcontext():
                loss = self.model(batch, noise).mean() / config.accumulate
                accelerator.backward(loss)
            total += loss.detach()
        accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))  # our choice: forget the random start quickly
        torch._foreach_lerp_(list(self.ema.values()), list(self._moving().values()), 1 - decay)
        return total


def _check_split(config: BcConfig, processes: int) -> None:
    if config.batch_size % (processes * config.accumulate):
        raise AloeError(
            f"batch_size {config.batch_size} cannot be split evenly over {processes} processes x {config.accumulate} parts"
        )


def _fresh_spec(config: BcConfig, robot: RobotDescription, object_dim: int = 0) -> PolicySpec:
    size = (config.image_size, config.image_size) if config.cameras else None
    return PolicySpec.of(robot, config.horizon, config.cameras, size, object_dim)


def _resumable(config: BcConfig) -> dict:
    """What must not change when a run is resumed, as JSON gives it back."""
    values = asdict(config)
    for key in ("log_every", "save_every", "compile"):
        values.pop(key)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _fingerprint(data: ChunkSource) -> str:
    digest = hashlib.sha256(str(len(data)).encode())
    for key, values in sorted(data.vectors().items()):
        digest.update(key.encode() + values.tobytes())
    return digest.hexdigest()
