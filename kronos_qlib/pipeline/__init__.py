"""Windows and network together, without Qlib: paths, contexts, signals, the stages of training."""
