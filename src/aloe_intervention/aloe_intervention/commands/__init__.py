"""Sub-commands of `aloe` that aloe_intervention brings."""
