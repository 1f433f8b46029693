"""LeRobot's own policies, small and randomly initialised, for tests. Importable where the package `lerobot` is installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors

from aloe_core.robot import load_robot
from aloe_policy.lerobot import LeRobotPolicy

ROBOT = load_robot("aloha_sim")
A, H = ROBOT.action_dim, 6
CAMERA = ROBOT.cameras[0].name
STATE = PolicyFeature(FeatureType.STATE, (A,))
ACTION = PolicyFeature(FeatureType.ACTION, (A,))


def sizes(**more) -> dict:
    return {"output_features": {"action": ACTION}, "chunk_size": H, "n_action_steps": H, "device": "cpu", **more}


def act_policy(images: bool = False, dropout: float = 0.0, **more) -> LeRobotPolicy:
    extra = (
        {f"observation.images.{CAMERA}": PolicyFeature(FeatureType.VISUAL, (3, 32, 48))}
        if images
        else {"observation.environment_state": PolicyFeature(FeatureType.ENV, (7,))}
    )
    config = ACTConfig(
        **sizes(input_features={"observation.state": STATE, **extra}, dropout=dropout),
        **{"dim_model": 16, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_vae_encoder_layers": 1},
        **{"latent_dim": 4, "pretrained_backbone_weights": None, **more},
    )
    stats = {
        "observation.state": {"mean": torch.full((A,), 0.5), "std": torch.full((A,), 2.0)},
        "action": {"mean": torch.linspace(-1, 1, A), "std": torch.linspace(0.5, 3, A)},
    }
    return LeRobotPolicy(ACTPolicy(config), *make_pre_post_processors(config, dataset_stats=stats), ROBOT)


# SmolVLA, pi0 and pi0.5: the real models at toy size. Their tokenizers would have to be downloaded, so the tokens are made up.


class Tokens:
    """Stands for a preprocessor: two tokens instead of the instruction, nothing normalised."""

    def __call__(self, inputs: dict) -> dict:
        count = len(inputs["observation.state"])
        tokens = torch.tensor([[3, 4]]).expand(count, 2)
        mask = torch.ones(count, 2, dtype=torch.bool)
        return {**inputs, "observation.language.tokens": tokens, "observation.language.attention_mask": mask}


def toy_smolvla(monkeypatch: pytest.MonkeyPatch):
    transformers = pytest.importorskip("transformers")
    from lerobot.policies.smolvla import smolvlm_with_expert as module
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    config = transformers.SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=5, pad_token_id=0
    )
    tokenizer = SimpleNamespace(fake_image_token_id=1, global_image_token_id=2)
    monkeypatch.setattr(module.AutoConfig, "from_pretrained", lambda *_: config)
    monkeypatch.setattr(module.AutoProcessor, "from_pretrained", lambda *_: SimpleNamespace(tokenizer=tokenizer))
    return SmolVLAPolicy(
        SmolVLAConfig(
            **sizes(input_features=vla_inputs(), num_vlm_layers=2, resize_imgs_with_padding=(32, 32), num_steps=2)
        )
    )


def toy_pi(monkeypatch: pytest.MonkeyPatch, version: str):
    pytest.importorskip("transformers")
    if version == "pi0":
        from lerobot.policies.pi0 import modeling_pi0 as module
        from lerobot.policies.pi0.configuration_pi0 import PI0Config as Config

        policy = module.PI0Policy
    else:
        from lerobot.policies.pi05 import modeling_pi05 as module
        from lerobot.policies.pi05.configuration_pi05 import PI05Config as Config

        policy = module.PI05Policy
    small = module.GemmaConfig(width=16, depth=1, mlp_dim=16, num_heads=8, num_kv_heads=1, head_dim=4)
    monkeypatch.setattr(module, "get_gemma_config", lambda _: small)
    real = dict(module.CONFIG_MAPPING.items())

    def fixed(config, **values):
        """Keeps `values` whatever is assigned later."""
        kind = type(config)

        def assign(self, key, value):
            kind.__setattr__(self, key, values.get(key, value))

        config.__class__ = type(kind.__name__, (kind,), {"__setattr__": assign})
        for key, value in values.items():
            setattr(config, key, value)

    def paligemma():
        config = real["paligemma"]()
        fixed(config.text_config, vocab_size=64)
        fixed(
            config.vision_config,
            **{"hidden_size": 16, "intermediate_size": 16, "projection_dim": 16, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "patch_size": 14},
        )
        return config

    monkeypatch.setattr(module, "CONFIG_MAPPING", {**real, "paligemma": paligemma})
    return policy(Config(**sizes(input_features=vla_inputs(), image_resolution=(28, 28), num_inference_steps=2)))


def vla_inputs() -> dict:
    return {"observation.state": STATE, f"observation.images.{CAMERA}": PolicyFeature(FeatureType.VISUAL, (3, 32, 48))}
