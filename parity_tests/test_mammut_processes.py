"""MaMMUT's loss over a batch that is spread over two processes, in PyTorch and in JAX."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import torch_reference
from parity_tests.mammut_pairs import GOLDEN, fill


def test_processes_agree_with_one(tmp_path) -> None:
    """Loss and gradients of two processes, averaged as DDP does, are those of one with the global batch.

    Equal parts: both terms (every rank has as many targets). Unequal parts: the contrastive term. The package
    stops with an error as soon as two processes gather, because its targets count the own batch only.
    """
    rng = np.random.default_rng(0)
    contrastive_only = {"caption_loss_weight": 0.0}
    models = [GOLDEN, GOLDEN | contrastive_only, GOLDEN | contrastive_only]
    runs = [
        {
            "sizes": sizes,
            "text": torch.from_numpy(rng.integers(1, 13, size=(sum(sizes), 6))),
            "image_tokens": torch.from_numpy(rng.normal(size=(sum(sizes), 4, 6))),
        }
        for sizes in ([2, 2], [3, 1], [1, 4])
    ]
    weights = fill(torch_reference.MaMMUT(**GOLDEN)).state_dict()
    torch.save({"models": models, "runs": runs, "weights": weights}, tmp_path / "task.pt")
    command = [sys.executable, "-m", "parity_tests.torch_mammut_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]

    for i, (arguments, run) in enumerate(zip(models, runs, strict=True)):
        reference = torch_reference.MaMMUT(**arguments).double()
        reference.load_state_dict(weights)
        loss = reference(run["text"], image_tokens=run["image_tokens"], return_loss=True)
        loss.backward()
        first, second = results[0][i], results[1][i]
        torch.testing.assert_close((first["loss"] + second["loss"]) / 2, loss.detach(), rtol=0, atol=1e-13)
        if arguments is not GOLDEN:  # the contrastive term is the same on every rank
            assert first["loss"] == second["loss"]
        for key, p in reference.named_parameters():
            for rank in (first, second):
                torch.testing.assert_close(rank["gradients"][key], p.grad, rtol=0, atol=1e-13, msg=key)
        assert reference.text_cls_token.grad.abs().max() > 1e-3
        assert reference.temperature.grad.abs().max() > 1e-3


def test_two_jax_processes_agree_with_pytorch(tmp_path) -> None:
    """Loss and gradient of a batch that is sharded over two processes, without code for that in the model.

    PyTorch with two ranks under gloo agrees with the same numbers, see `test_processes_agree_with_one`.
    """
    rng = np.random.default_rng(0)
    text, image_tokens = rng.integers(1, 13, size=(4, 6)), rng.normal(size=(4, 4, 6))
    reference = fill(torch_reference.MaMMUT(**GOLDEN)).double()
    np.savez(
        tmp_path / "weights.npz", **{key: value.numpy() for key, value in reference.state_dict().items()}
    )
    (tmp_path / "config.json").write_text(json.dumps(GOLDEN))
    np.savez(tmp_path / "batch.npz", text=text, image_tokens=image_tokens)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "parity_tests.jax_mammut_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), coordinator, str(tmp_path)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=180)
        assert worker.returncode == 0, errors
    ours = np.load(tmp_path / "jax.npz")
    loss = reference(torch.from_numpy(text), image_tokens=torch.from_numpy(image_tokens), return_loss=True)
    loss.backward()
    np.testing.assert_allclose(ours["loss"], loss.item(), rtol=1e-12)
    for key, p in reference.named_parameters():
        np.testing.assert_allclose(ours[key], p.grad, rtol=0, atol=1e-12, err_msg=key)
