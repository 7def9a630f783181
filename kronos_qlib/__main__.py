"""`python -m kronos_qlib`, where the console command is not on the path."""

import sys

from kronos_qlib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
