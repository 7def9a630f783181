"""A job cut into blocks: each block's result a Parquet file, written once; a killed job goes on."""
