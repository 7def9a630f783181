"""Turn bars in CSV, Parquet or Feather files into a Qlib data folder.

The same as `kronos-qlib data convert`, for a clone that is not on the path.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kronos_qlib.cli.data.data_convert_command import add_arguments
from kronos_qlib.cli.parsers import run_script


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 when all is well, 1 when bars break a rule, 2 for bad input or usage."""
    return run_script("data_prep/csv_to_qlib.py", add_arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
