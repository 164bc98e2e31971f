"""How fast it is: peers and ours in turn in one run, beside the machine's own limit. `python -m tests.bench`."""

import os

# Before torch is imported, here and in the fresh processes that benchmarks start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
