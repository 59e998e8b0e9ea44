"""Samplers choose prompts. One file a sampler; the file name is its name in a configuration."""
