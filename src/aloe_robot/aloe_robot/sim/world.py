"""What can be read off a simulated scene: tool and object poses, and who touches whom."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from aloe_robot.sim.scene import ARMS, TCP_OFFSET


class World:
    """A named view on one `MjModel`/`MjData` pair.

    Contact parties are `left_pads`, `right_pads` (either finger of a gripper), `left_arm`, `right_arm` (the rest of the arm), `table`, the task's objects,
    and every geom named in `parts`.
    """

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, objects: Mapping[str, str], parts: tuple[str, ...] = ()
    ) -> None:
        """`objects` maps our name of an object to its MuJoCo body; `parts` are geoms that count as a party of their own."""
        self.model, self.data = model, data
        self._body_id = {name: model.body(body).id for name, body in objects.items()}
        self._gripper_id = {arm: model.body(f"vx300s_{arm}/gripper_link").id for arm in ARMS}
        self.objects = tuple(objects)
        self.parties = (
            "other",
            "table",
            *(f"{arm}_{part}" for arm in ARMS for part in ("arm", "pads")),
            *objects,
            *parts,
        )
        self._index = {name: i for i, name in enumerate(self.parties)}
        self._party_of_geom = np.array([self._index[self._party(g)] for g in range(model.ngeom)])
        self._touch = np.zeros((len(self.parties), len(self.parties)), bool)
        freedoms = [model.jnt_dofadr[model.body_jntadr[i]] for i in self._body_id.values()]
        self.object_qvel = np.concatenate([np.arange(a, a + 6) for a in freedoms])
        joints = [model.jnt_qposadr[model.body_jntadr[i]] for i in self._body_id.values()]
        self.object_qpos = np.concatenate(
            [np.arange(a, a + 7) for a in joints]
        )  # indices into qpos: xyz, quaternion wxyz per object

    def _party(self, geom: int) -> str:
        name, body = self.model.geom(geom).name, self.model.geom_bodyid[geom]
        if name in self._index:
            return name
        for obj, body_id in self._body_id.items():
            if body == body_id:
                return obj
        for arm in ARMS:
            if name.startswith(f"vx300s_{arm}/"):
                return f"{arm}_pads" if "gripper_finger" in name else f"{arm}_arm"
        return "other"

    def refresh(self) -> None:
        """Reads the contacts of the current state; call once after each change of the state."""
        self._touch[:] = False
        pairs = self._party_of_geom[self.data.contact.geom]
        self._touch[pairs[:, 0], pairs[:, 1]] = True
        self._touch |= self._touch.T

    def touch(self, a: str, b: str) -> bool:
        """Whether parties `a` and `b` are in contact."""
        return bool(self._touch[self._index[a], self._index[b]])

    def position(self, name: str) -> np.ndarray:
        """Centre of an object `[3]` [m]."""
        return self.data.xpos[self._body_id[name]]

    def rotation(self, name: str) -> np.ndarray:
        """Orientation of an object `[3, 3]`, columns are its axes in the world."""
        return self.data.xmat[self._body_id[name]].reshape(3, 3)

    def tcp(self, arm: str) -> np.ndarray:
        """Tool centre point of an arm `[3]` [m]."""
        return self.data.xpos[self._gripper_id[arm]] + self.tool_rotation(arm) @ TCP_OFFSET

    def tool_rotation(self, arm: str) -> np.ndarray:
        """Orientation of a gripper `[3, 3]`: x points to the finger tips, y is the closing direction."""
        return self.data.xmat[self._gripper_id[arm]].reshape(3, 3)
