"""What kills leave of `kronos-qlib daily`: a quarter killed again and again, beside one left alone.

Two copies of one small market get a day's bars every evening and a model of a few lines
(tests/daily_world.py). One is played undisturbed. The other is killed by SIGKILL at random changes
of the file system (files opened for writing, made, renamed, removed, databases opened), and started
again each time; nothing is cleaned up between. Then every file of both is compared byte for byte:
the Qlib folder with its log, scores, what was taken, the ledger, of whose index the rows; locks are
left out. Linux.

Example:
    python benchmarks/daily_kills.py
    python benchmarks/daily_kills.py --days 10 --kills 8 --seed 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
EVENTS_A_DAY = 50
"""Changes of the file system of an evening, about; kills lie that far apart on average."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=63, help="evenings (%(default)s)")
    parser.add_argument(
        "--kills", type=int, default=30, help="how often it is killed (%(default)s)"
    )
    parser.add_argument("--names", type=int, default=3, help="instruments (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the points (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from daily_world import World

    rng = np.random.default_rng(chosen.seed)
    apart = 2 * EVENTS_A_DAY * chosen.days / (chosen.kills + 1)
    points = [str(point) for point in rng.integers(1, max(2, int(apart)), chosen.kills)]
    with tempfile.TemporaryDirectory() as folder:
        found, killed, seconds = {}, {}, {}
        for name, events in (("undisturbed", []), ("killed", points)):
            place = Path(folder) / name
            World(place, chosen.names).make()
            start = time.perf_counter()
            done = subprocess.run(
                [
                    sys.executable,
                    str(TESTS / "daily_world.py"),
                    str(place),
                    str(chosen.names),
                    str(chosen.days),
                    *events,
                ],
                check=True,
                capture_output=True,
                text=True,
            )
            seconds[name] = time.perf_counter() - start
            killed[name] = int(done.stdout)
            found[name] = World(place, chosen.names).contents()
    one, two = found["undisturbed"], found["killed"]
    differing = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    figures = {
        "days": chosen.days,
        "kills": killed["killed"],
        "files": len(one),
        "differing": len(differing),
    }
    print("| days | kills | files | differing |")
    print("|---|---|---|---|")
    print("| " + " | ".join(str(figure) for figure in figures.values()) + " |")
    for name in differing[:20]:
        print(name, file=sys.stderr)
    print(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()), file=sys.stderr)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
