"""Report what is wrong with bars in files; repair what is named, into a new file.

The same as `kronos-qlib data check`, for a clone that is not on the path.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kronos_qlib.cli.data.data_check_command import add_arguments
from kronos_qlib.cli.parsers import run_script


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 when all is well, 1 when bars break a rule, 2 for bad input or usage."""
    return run_script("data_prep/check_bars.py", add_arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
