"""Each evening: new bars in, members, scores, orders, ledger; as often as one likes."""
