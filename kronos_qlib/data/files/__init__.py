"""From a file or a frame to a table of bars: values, columns, times and numbers, read strictly."""
