"""The network: bars to tokens to the next tokens. Imports torch; independent of any data source."""
