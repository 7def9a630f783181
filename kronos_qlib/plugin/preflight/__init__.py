"""What would fail late in a run, looked for before it begins."""
