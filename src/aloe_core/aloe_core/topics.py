"""Names of the topics and services that tie the nodes together, relative to the namespace they run in.

Cameras and arm commands have the names that the robot description gives them.
"""

CHUNK = "policy/chunk"  # aloe_msgs/ActionChunk, policy_node -> control_node
CHUNK_REQUEST = "control/chunk_request"  # aloe_msgs/ChunkRequest, control_node -> policy_node
CONTROL_STATE = "control/state"  # aloe_msgs/ControlState, every tick
TRANSITION = "control/transition"  # aloe_msgs/Transition, every tick, one tick late
SAFETY_STATUS = "control/safety"  # aloe_msgs/SafetyStatus, latched
EPISODE_EVENT = "episode/event"  # aloe_msgs/EpisodeEvent, latched
POLICY_VERSION = "policy/version"  # aloe_msgs/PolicyVersion, latched, learner_node -> policy_node
POLICY_STATUS = "policy/status"  # aloe_msgs/PolicyStatus, latched
RECORDER_STATUS = "recorder/status"  # aloe_msgs/RecorderStatus, latched
CRITIC_VALUE = "critic/value"  # aloe_msgs/CriticValue
TASK_STATE = "sim/task_state"  # aloe_msgs/TaskState, simulation only
TELEOP_COMMAND = "{arm}/teleop/command"  # aloe_msgs/TeleopCommand, one topic per arm
SPACENAV_TWIST = "{arm}/spacenav/twist"  # geometry_msgs/Twist, one SpaceMouse per arm
SPACENAV_JOY = "{arm}/spacenav/joy"  # sensor_msgs/Joy
DIAGNOSTICS = "/diagnostics"  # diagnostic_msgs/DiagnosticArray

START_EPISODE = "episode/start"  # aloe_msgs/StartEpisode
STOP_EPISODE = "episode/stop"  # aloe_msgs/StopEpisode
LABEL_EPISODE = "episode/label"  # aloe_msgs/LabelEpisode
DISCARD_EPISODE = "episode/discard"  # aloe_msgs/DiscardEpisode
RESET_SIM = "sim/reset"  # aloe_msgs/ResetSim: reset and pause
RUN_SIM = "sim/run"  # std_srvs/SetBool: true runs, false pauses
RESET_SAFETY = "control/reset_safety"  # std_srvs/Trigger
EMERGENCY_STOP = "control/emergency_stop"  # std_srvs/Trigger
IMPROVE = "learner/improve"  # aloe_msgs/ImprovePolicy action
