"""openmai: from a web archive to an aligned chat model, in one code base."""

__version__ = "0.1.0"
