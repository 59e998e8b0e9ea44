"""Rewards score one answer each. One file a reward; the file name is its name in a configuration.

A reward runs in a grading process that may be killed at any time, so it keeps its imports light and remembers nothing.
"""
