"""Workflow files and market profiles: found, rendered, checked, run."""
