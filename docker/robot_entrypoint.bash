#!/bin/bash
# Starts a launch file of aloe_bringup with its arguments; anything else is run as a command inside the workspace.
set -e
source /opt/ros/jazzy/setup.bash
source /opt/aloe/install/setup.bash
case "$1" in
    *.launch.py) exec ros2 launch aloe_bringup "$@" ;;
    *) exec "$@" ;;
esac
