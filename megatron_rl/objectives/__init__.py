"""Objectives price tokens. One file an objective; the file name is its name in a configuration."""
