"""Sub-commands of `aloe` that aloe_core brings."""
