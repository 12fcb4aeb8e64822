"""The `remit` command. It speaks NATS directly, so it works with no gateway."""
