"""Renders docs/images/robot.png: the simulated robot at the hand-over, from the front and through its three cameras.

Not part of `make docs`: pictures change seldom. The other one is made by
`aloe bags timeline BAG --output docs/images/timeline.png`.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from aloe_robot.expert.policy import ScriptedPolicy
from aloe_robot.sim.env import SimEnv

ROOT = Path(__file__).resolve().parent.parent
SEED, STEP = 3, 150  # of the episode that is shown: both grippers hold the cube then
VIEWS = ("overhead", "left_wrist", "right_wrist")
HEIGHT = 480  # of the picture [pixel]


def main() -> None:
    env = SimEnv("transfer_cube", cameras=("front", *VIEWS))
    env.reset(SEED)
    for action in ScriptedPolicy("transfer_cube", horizon=STEP).chunk("transfer_cube", env.save_state()):
        env.step(action)
    front = scaled(env.render("front", 1280, 960), 1.0)[60:720, 90:1190]
    front = cv2.resize(front, (round(HEIGHT * 1100 / 660), HEIGHT), interpolation=cv2.INTER_AREA)
    column = np.vstack([labelled(scaled(env.render(name, 880, 880), HEIGHT / 3 / 880), name) for name in VIEWS])
    gap = np.full((HEIGHT, 4, 3), 255, np.uint8)
    picture = np.hstack([front, gap, column])
    cv2.imwrite(str(ROOT / "docs/images/robot.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """Rendered large and averaged down, because the renderer does not smooth edges; empty space becomes white."""
    image = image.copy()
    image[(image == 0).all(axis=-1)] = 255
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def labelled(image: np.ndarray, text: str) -> np.ndarray:
    cv2.rectangle(image, (0, 0), (8 + 9 * len(text), 22), (255, 255, 255), -1)
    return cv2.putText(
        image, text.replace("_", " "), (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA
    )


if __name__ == "__main__":
    main()
