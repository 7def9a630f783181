"""From a file or a frame to a table of bars: cells, columns, times and numbers, read strictly."""
