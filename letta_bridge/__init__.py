"""A Matrix application service that makes every Letta agent a Matrix user of its own."""

__version__ = "0.1.0"
