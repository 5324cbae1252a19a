"""Speed, each part against its peer in one run: `python -m benchmarks --list` says what there is."""

import os

# the profiler, which counts memory on a CPU, otherwise writes lines to stderr at every use; read when PyTorch loads it
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
