"""Sub-commands of `aloe` that aloe_policy brings."""
