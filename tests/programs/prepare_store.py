"Prepares a part of the samples."

import sys
from dataclasses import replace

from ptacl.base.core import samples_dir
from ptacl.data.cohort import read_cohort
from ptacl.data.prepare import PrepareConfig, prepare_cohort

whole = read_cohort(samples_dir())
print("ready", flush=True)
prepare_cohort(
    replace(whole, table=whole.table.head(24)),
    sys.argv[1],
    PrepareConfig(n_frames=8, crop_px=32, workers=int(sys.argv[2]), shard_size=10),
    progress=False,
)
