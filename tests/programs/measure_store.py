"Time and memory of opening a store and drawing from it."

import json
import sys
import time

import numpy as np

from ptacl.base.config import TrainConfig
from ptacl.data.batches import draw_batch, load_data


def anonymous():
    return int(next(x for x in open("/proc/self/status") if x.startswith("RssAnon")).split()[1]) / 1024


cfg = TrainConfig(n_frames=50, crop_px=80)
start = time.perf_counter()
cpu = time.process_time()
before = anonymous()
_, pairs, _ = load_data(sys.argv[1], cfg)
train = pairs.split("train")
batch = draw_batch(train, np.arange(16) * len(train) // 16, 2500)
first = time.perf_counter() - start
first_cpu = time.process_time() - cpu
opened = anonymous()
rng = np.random.default_rng(0)
for _ in range(10):
    batch = draw_batch(train, rng.integers(0, len(train), 64), 2500)
print(
    json.dumps(
        dict(
            n=len(pairs),
            first_s=first,
            first_cpu_s=first_cpu,
            opened_mb=opened - before,
            drawn_mb=anonymous() - opened,
        )
    )
)
