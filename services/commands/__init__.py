"""What the `instructzero` command does; `services/cli.py` puts it together."""
