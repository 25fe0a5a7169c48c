"""The one error a person is meant to read."""


class InputError(ValueError):
    """What a user gave cannot be used: says what was expected, what was found and what to do.

    The command line prints it without a traceback and exits with code 2. Anything else that is
    raised is a bug and keeps its traceback.
    """


def listing(problems: list[str], *, limit: int = 20) -> str:
    """All `problems` as indented lines, with a count of those beyond `limit`."""
    lines = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)
