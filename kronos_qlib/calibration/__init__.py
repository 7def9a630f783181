"""Statistical post-processing of sampled paths: their spread and centre from what was known."""
