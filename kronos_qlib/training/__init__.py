"""From windows to finetuned weights."""
