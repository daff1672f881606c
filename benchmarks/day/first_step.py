"""The process that start-up times: load the model as a job does, and sample one step of one batch."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main(options: dict[str, Any]) -> dict[str, float]:
    """Return the seconds since the process was started at each milestone."""
    begun = float(os.environ["AUGBENCH_STARTED"])
    found = {"interpreter": time.monotonic() - begun}
    import torch

    from augbench.config.models import Diffusion
    from augbench.generate.sampler import Sampler
    from augbench.models.folders import load_pipeline
    from augbench.runtime.compiling import compile_pipeline

    config = Diffusion(model=options["folder"], resolution=options["resolution"], dtype="auto")
    found["imported"] = time.monotonic() - begun
    pipeline = load_pipeline(config, torch.device(options["device"]))
    found["loaded"] = time.monotonic() - begun
    if options["compiled"]:
        compile_pipeline(pipeline)
    sampler = Sampler(
        pipeline,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        resolution=config.resolution,
        batch_size=options["batch"],
        compiled=options["compiled"],
    )
    sampler.warm_up()
    if options["device"] == "cuda":
        torch.cuda.synchronize()
    found["first_step"] = time.monotonic() - begun
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
