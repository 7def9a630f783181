"""What a backtest earned, risked and paid."""
