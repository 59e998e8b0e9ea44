"""Typed configuration: strict YAML in, checked choices out, before anything heavy is imported."""
