# The machine at the robot: ROS 2 Jazzy and the workspace. Build from the top folder: docker build -f docker/robot.Dockerfile .
FROM ros:jazzy-ros-base-noble

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Versions come from Ubuntu's and ROS's archives, which keep only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y \
        g++ libegl-mesa0 libegl1 libgl1-mesa-dri make python3-colcon-common-extensions python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/aloe

# The dependencies change less often than the code: a layer of their own, filled from the same lists as `make setup`.
COPY requirements requirements
COPY scripts/setup scripts/setup_environment.py scripts/
COPY Makefile ./
COPY config config
COPY launch launch
COPY src src
COPY aloe ./
RUN source /opt/ros/jazzy/setup.bash \
    && PYTHON=/usr/bin/python3 PIP_NO_CACHE_DIR=1 make setup

COPY docker/robot_entrypoint.bash /usr/local/bin/robot_entrypoint

# For `aloe`; behind the system's own, whose Python is that of `ros2`.
ENV PATH=$PATH:/opt/aloe/.venv/bin

# Bags, runs, logs and caches are written by whoever runs the container, who need not be known to it.
ENV HOME=/var/tmp USER=ubuntu ROS_LOG_DIR=/var/tmp/ros
WORKDIR /data
USER 1000
ENTRYPOINT ["robot_entrypoint"]
CMD ["real_robot.launch.py"]
