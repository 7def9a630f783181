"""What was forecast day by day beside what came and what a backtest promised."""
