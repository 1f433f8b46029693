# A machine that trains: the pure packages and PyTorch with CUDA from its wheels, no ROS. Build from the top folder:
# docker build -f docker/trainer.Dockerfile .
FROM python:3.12-slim-bookworm

# Versions come from Debian's archive, which keeps only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y libegl-mesa0 libegl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/aloe
COPY requirements requirements
RUN pip install --no-cache-dir --constraint requirements/constraints.txt --requirement requirements/learning.txt \
    && pip install --no-cache-dir --no-deps --requirement requirements/no-deps.txt
COPY config config
COPY src src
RUN pip install --no-cache-dir --constraint requirements/constraints.txt \
        --editable src/aloe_core --editable "src/aloe_robot[sim]" \
        --editable "src/aloe_intervention[kinematics]" \
        --editable src/aloe_policy --editable "src/aloe_critic[rerun]"

# Bags and runs are written by whoever runs the container, who need not be known to it.
ENV HOME=/var/tmp USER=aloe MUJOCO_GL=egl
WORKDIR /data
RUN useradd --create-home --uid 1000 aloe
USER 1000
ENTRYPOINT ["aloe"]
CMD ["--help"]
