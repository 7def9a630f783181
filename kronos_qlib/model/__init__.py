"""The network: bars to tokens to the next tokens. Imports torch, knows no data source."""
