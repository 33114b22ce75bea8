"""tue protects pictures from being learned from."""

__version__ = "0.1.0"
