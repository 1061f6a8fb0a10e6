"""RLVR for math language models in which only the high-entropy forking tokens carry policy gradient."""

__version__ = "0.1.0"
