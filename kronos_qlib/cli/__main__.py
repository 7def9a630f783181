"""`python -m kronos_qlib.cli`, where the console command is not on the path."""

import sys

from kronos_qlib.cli.main import main

sys.exit(main())
