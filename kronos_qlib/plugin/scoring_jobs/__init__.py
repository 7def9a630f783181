"""Scoring cut into blocks of days: of a run, a workflow or one model, here or on Ray."""
