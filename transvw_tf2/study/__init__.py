"""Studies of transfer: what initial weights are worth on target tasks."""
