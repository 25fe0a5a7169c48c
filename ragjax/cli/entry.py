"""One command: its verb is found and run, and what stops it becomes a message and an exit code."""

from __future__ import annotations

import difflib
import errno
import os
import sys

from ragjax.cli.exits import EXIT_STOPPED, fail
from ragjax.cli.verbs import VERBS, overview
from ragjax.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 bad input, 3 diverged, 75 stopped and saved, 130 stopped."""
    # Only tokenizers are asked of transformers, which would complain that torch is not there.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview(), end="")
        return
    if given[0] == "--version":
        from ragjax.run_folder import versions

        print(f"ragjax {versions()['ragjax']}")
        return
    verb, rest = given[0], given[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        fail(
            f"There is no verb {verb!r}"
            + (f"; did you mean {near[0]}?" if near else f": {', '.join(VERBS)}.")
        )
    try:
        VERBS[verb].run(rest)
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail(f"{error.strerror}: free some space and run it again; what is done is kept.")
    except KeyboardInterrupt:
        fail("stopped at once; what was saved before is still there.", EXIT_STOPPED)
