"""Mesh, sharding rules by parameter name, multi-host start."""
