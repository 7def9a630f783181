"""Scores and orders of each day into the ledger, and what came of them."""
