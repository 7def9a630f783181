#!/bin/sh
# What a GPU computes as a CPU does, and how fast: under six minutes. Prints tables, and says so
# where there is no GPU. From the root of the repository, in an environment with this package:
#     sh benchmarks/gpu.sh [python]
set -eu
python=${1:-python}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "benchmarks/gpu.sh: torch sees no CUDA GPU here, nothing was measured" >&2
    exit 1
fi
exec "$python" benchmarks/gpu.py --device cuda --most-seconds 330
