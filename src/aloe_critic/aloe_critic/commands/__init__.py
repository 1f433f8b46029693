"""Sub-commands of `aloe` that aloe_critic brings."""
