"""tinykd: from a big teacher to a tiny int8 student on a microcontroller, with proof at every step."""

__version__ = "0.1.0"
