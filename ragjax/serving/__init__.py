"""Models over HTTP: OpenAI's protocol, and a page to try them."""

from ragjax.serving.endpoints import app
from ragjax.serving.server import bind, serve, url_of
from ragjax.serving.service import Service, names_of

__all__ = ["Service", "app", "bind", "names_of", "serve", "url_of"]
