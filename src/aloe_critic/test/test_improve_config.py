"""Settings of an improvement: what is not one, or has no usable value, is named before anything is learned."""

import pytest

from aloe_core.errors import AloeError
from aloe_critic.improve_config import load_config, overridden
from aloe_critic.improvement import ImproveConfig
from aloe_critic.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_usable_defaults(method):
    assert overridden(ImproveConfig(), method=method).method == method


def test_options_are_read_as_yaml():
    config = overridden(ImproveConfig(), options=["beta=0.5", "clip=0", "bootstrap=expectile"], critic_steps=7)
    assert config.options == {"beta": 0.5, "clip": 0, "bootstrap": "expectile"}
    assert config.learner.critic_steps == 7


@pytest.mark.parametrize(
    ("method", "option", "says"),
    [
        ("aloe", "bootstrap=expectle", "option bootstrap: Input should be 'policy', 'expectile'"),
        ("aloe", "td_weight=off", "option td_weight: Input should be 'none'"),  # in YAML that is false
        ("aloe", "beta=0", "option beta: Input should be greater than 0"),
        ("aloe", "beta=0,5", "option beta: Input should be a valid number"),
        ("aloe", "target_reduction=median", "option target_reduction: Input should be"),
        ("aloe", "clip=-1", "option clip: Input should be greater than or equal to 0"),
        ("recap", "bins=1", "option bins: Input should be greater than or equal to 2"),
        ("recap", "good_share=1.5", "option good_share: Input should be less than or equal to 1"),
        ("aloe", "beta", "option 'beta' is not key=value"),
    ],
)
def test_an_option_that_cannot_be_is_named(method, option, says):
    with pytest.raises(AloeError, match=says):
        overridden(ImproveConfig(), method=method, options=[option])


@pytest.mark.parametrize(
    ("critic", "says"),
    [
        ("{widht: 3}", "critic has no setting 'widht'; it has: action_dim, attention_heads"),
        ("{width: wide}", "critic: width: Input should be a valid integer"),
        ("{network: rnn}", "critic: network: Input should be 'transformer' or 'mlp'"),
        ("{heads: 0}", "critic heads must be at least 1, not 0"),
        ("{width: 30, attention_heads: 4}", "critic width 30 is not a multiple of its 4 attention heads"),
    ],
)
def test_a_critic_that_cannot_be_is_named_with_its_file(tmp_path, critic, says):
    file = tmp_path / "improve.yaml"
    file.write_text(f"critic: {critic}\n")
    with pytest.raises(AloeError, match=f"{file}: {says}"):
        load_config(file)


@pytest.mark.parametrize(
    ("learner", "says"),
    [
        ("checkpoint_every: 0", "checkpoint_every: Input should be greater than or equal to 1"),
        ("log_every: 0", "log_every: Input should be greater than or equal to 1"),
        ("target_samples: 0", "target_samples: Input should be greater than or equal to 1"),
        ("policy_samples: 0", "policy_samples: Input should be greater than or equal to 1"),
        ("batch_size: -8", "batch_size: Input should be greater than or equal to 1"),
        ("actor_batch_size: -8", "actor_batch_size: Input should be greater than or equal to 0"),
        ("critic_steps: -1", "critic_steps: Input should be greater than or equal to 0"),
        ("cut_share: 3", "cut_share: Input should be less than or equal to 1"),
        ("ema_decay: 1.5", "ema_decay: Input should be less than or equal to 1"),
        ("actor_lr: 0", "actor_lr: Input should be greater than 0"),
        ("grad_clip: 0", "grad_clip: Input should be greater than 0"),
        ("weight_decay: -1", "weight_decay: Input should be greater than or equal to 0"),
        ("refresh: -1", "refresh: Input should be greater than or equal to 0"),
        ("seed: -1", "seed: Input should be greater than or equal to 0"),
        ("source_shares: {human: -1}", "source_shares.human: Input should be greater than or equal to 0"),
    ],
)
def test_a_learner_that_cannot_learn_is_named_before_it_starts(tmp_path, learner, says):
    file = tmp_path / "improve.yaml"
    file.write_text(f"learner: {{{learner}}}\n")
    with pytest.raises(AloeError, match=f"{file}: learner.{says}"):
        load_config(file)
