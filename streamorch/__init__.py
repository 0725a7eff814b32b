"""streamorch: the control plane for MediaMTX media servers."""

__version__ = "0.1.0"
