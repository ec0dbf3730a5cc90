"""Isolated devices on shaped, lossy links, described by a YAML file and measured with real packets."""
