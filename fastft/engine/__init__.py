"""Making it happen: the only folder that imports torch, transformers, trl, peft and unsloth.

Python runs this file before any `fastft.engine.x`, so Unsloth is imported before any of them: it
patches transformers, trl and peft, and must come before them. FASTFT_ENGINE=transformers, which `select` sets for this
process and its children, leaves it out.
"""

from __future__ import annotations

import os
import sys

from fastft.engine_choice import first_gpu, selected
from fastft.files.cache import cache_folder

_kernels = cache_folder() / "unsloth_compiled"
_kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
# Unsloth writes generated code here and puts the folder on sys.path: never the current directory, which may be shared.
os.environ["UNSLOTH_COMPILE_LOCATION"] = str(_kernels)
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
# On a busy machine threads that wait for each other should sleep, not spin: a training step then takes 2.5 s instead of
# 3 to 7. On an idle one it would take 1.3 s instead of 1.05 (benchmarks/threads.json). Torch's OpenMP library reads it.
if hasattr(os, "getloadavg") and os.getloadavg()[0] >= (os.cpu_count() or 1):
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# In one process the trainer of transformers spreads a batch over all visible GPUs (DataParallel), which TRL refuses.
# Under torchrun each GPU has its process, and Unsloth's trainer takes one by itself.
if selected() == "transformers" and "WORLD_SIZE" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = first_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"))
if selected() == "unsloth":
    early = [name for name in ("trl", "transformers", "peft") if name in sys.modules]
    if early:
        raise ImportError(f"{', '.join(early)} imported before fastft.engine: Unsloth must come first")
    import unsloth  # noqa: F401
