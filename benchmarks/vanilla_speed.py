"""Multiple choice through our LM against the harness's own HFLM, and a transplant against vanilla.

    python benchmarks/vanilla_speed.py task=paper_xnli_mc language_pair=en-sw limit=8 [rounds=3]

CPU seconds of this process on one thread, the three interleaved in each round, medians and their ratios. Keys are
those of `xtransplant evaluate`; `rounds` is this script's own, and `hflm_batch_size` (1 is HFLM's fastest on a CPU).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from xtransplant import loading, pairing
from xtransplant.compose import compose
from xtransplant.config import EvaluateConfig
from xtransplant.lm import TransplantLM


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    own = {"rounds": 3, "hflm_batch_size": 1}
    for argument in list(arguments):
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = int(value)
            arguments.remove(argument)
    vanilla = compose("evaluate", arguments)
    transplant = compose("evaluate", [*arguments, "transplant.layers=[last,first]"])
    assert isinstance(vanilla, EvaluateConfig) and isinstance(transplant, EvaluateConfig)

    from lm_eval.models.huggingface import HFLM

    [found] = pairing.load(vanilla.task, vanilla.language_pair, vanilla.split, vanilla.limit)
    found.target.build_all_requests(samples=found.rows)
    requests = found.target.instances
    loaded = loading.load(vanilla.model)
    hflm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=own["hflm_batch_size"])
    lms: dict[str, Callable[[], Any]] = {
        "HFLM": lambda: hflm,
        "ours": lambda: TransplantLM.from_config(vanilla),
        "ours, transplant": lambda: TransplantLM.from_config(transplant),
    }
    seconds: dict[str, list[float]] = {name: [] for name in lms}
    answers: dict[str, Any] = {}
    for _ in range(own["rounds"]):
        for name, make in lms.items():
            lm = make()
            if isinstance(lm, TransplantLM):
                lm.decoder  # noqa: B018  (loading, and the once-a-run checks, are not what is compared)
                lm.counts.checks = {"skipped": 0.0}
            started = time.process_time()
            answers[name] = lm.loglikelihood(requests, disable_tqdm=True)
            seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    difference = max(abs(a[0] - b[0]) for a, b in zip(answers["HFLM"], answers["ours"], strict=True))
    print(
        json.dumps(
            {
                "task": found.name,
                "model": vanilla.model.name,
                "documents": len(found.rows),
                "requests": len(requests),
                "cpu_seconds": seconds,
                "documents_per_cpu_second": {name: len(found.rows) / value for name, value in medians.items()},
                "ours_over_hflm": medians["HFLM"] / medians["ours"],
                "transplant_over_vanilla_cost": medians["ours, transplant"] / medians["ours"],
                "largest_logprob_difference": difference,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
