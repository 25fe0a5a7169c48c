"""The command line: each verb parses, calls one function, prints."""

from ragjax.cli.entry import main

__all__ = ["main"]
