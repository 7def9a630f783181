"""What the runs of a store say at a glance: which there are, how one of them ranks a day."""
