"""The commands of `hvlab` that are about a machine: booted, restored from a snapshot, reported."""
