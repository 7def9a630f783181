"""Services that have bars, each behind one protocol, none of them needed for a drop folder."""
