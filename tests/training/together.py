"""Rank 0 of a training, as the worker is: ``python -m tests.training.together FOLDER SETTINGS``, SETTINGS as JSON.

It says on standard output who its ranks are. When it gets a line, it trains the model in FOLDER/parent on the rows in
FOLDER/rows, and leaves weights and figures in FOLDER/done.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from flywheel.settings import TrainerSettings
from services.trainer.processes import environment


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder, settings = Path(sys.argv[1]), TrainerSettings.model_validate_json(sys.argv[2])
    os.environ.update(environment(settings))
    import torch

    from services.trainer import adapters, models, training
    from services.trainer.rank.crew import Crew

    rows = pickle.loads((folder / "rows").read_bytes())
    crew = Crew(settings, "info")
    torch.set_num_threads(1)
    print(*(other.pid for other in crew._others), file=out, flush=True)
    sys.stdin.readline()
    base, tokenizer = models.load(folder / "parent")
    model = adapters.put_on(base, settings)
    with crew.training(folder / "parent", rows=rows):
        figures = training.train(model, tokenizer, rows, settings, lambda done, total: None)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.save({"weights": weights, "figures": figures}, folder / "done")


if __name__ == "__main__":
    main()
