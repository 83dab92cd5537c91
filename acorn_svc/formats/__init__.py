"""Bytes to objects and back; everything that comes in is suspicious."""
