"""Sub-commands of `aloe` that aloe_robot brings."""
