"""What to type where an optional package is missing: bertfast is installed from its clone, with one of pyproject.toml's extras."""


def install(extra: str) -> str:
    """The command that brings the packages of `extra`, such as "hf", and where it is typed."""
    return f"pip install --no-build-isolation -e '.[{extra}]' in the clone of bertfast"
