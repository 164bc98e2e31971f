"""How much of a pre-trained transformer is essential? Prune once, then find where performance turns."""

__version__ = "0.1.0"
