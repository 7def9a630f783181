"""Bars into a Qlib folder that is there: days at its end, a changed past."""
