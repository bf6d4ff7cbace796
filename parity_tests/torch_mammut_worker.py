"""One of several processes that train the reference MaMMUT on parts of a batch; test_mammut_processes.py starts them.

    python -m parity_tests.torch_mammut_worker RANK WORLD_SIZE FOLDER

FOLDER/task.pt holds the model, its weights and the runs; FOLDER/rank<RANK>.pt receives losses and averaged
gradients. It has no JAX to import, so that it starts quickly.
"""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import torch_reference


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    task = torch.load(folder / "task.pt", weights_only=True)
    # Built before the process group: whether to gather must be decided when the loss is computed.
    models = [torch_reference.MaMMUT(**arguments).double() for arguments in task["models"]]
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    results = []
    for model, run in zip(models, task["runs"], strict=True):
        model.load_state_dict(task["weights"])
        text, image_tokens = (run[name].split(run["sizes"])[rank] for name in ("text", "image_tokens"))
        parallel = DistributedDataParallel(model)
        loss = parallel(text, image_tokens=image_tokens, return_loss=True)
        loss.backward()
        gradients = {key: p.grad for key, p in model.named_parameters()}
        results.append({"loss": loss.detach(), "gradients": gradients})
    torch.save(results, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
