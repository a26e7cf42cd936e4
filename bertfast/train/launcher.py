"""What torchrun tells a process of itself before it has joined the others. Imports nothing heavy, since every command asks."""

import os


def is_main() -> bool:
    """Whether this process is the rank that writes files and speaks."""
    return os.environ.get("RANK", "0") == "0"
