"""Stages derive columns from columns. One file a stage; the file name is its name in a configuration."""
