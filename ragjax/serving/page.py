"""The page at `/`: one file, and the policy that lets it run its own script and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files("ragjax.serving").joinpath("page.html").read_text(encoding="utf-8")


def _hash(tag: str) -> str:
    [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the browser, for the page: its own script and style by their hashes, and requests to its own server."""
