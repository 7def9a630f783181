"""Matrix products with weights that stay as they are, by the number type they are computed in."""
