"""The training tasks in PyTorch: the models of torch_reference in a plain loop, on the same batches.

A task's metrics are computed by the same NumPy code on both sides (`Task.evaluate`); what differs is who
computes the outputs. `TorchTask.call` stands in for the trainer's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import reduce
from flax import nnx
from jax.sharding import SingleDeviceSharding
from torch import Tensor

from jaxmodels.compare.subjects import reference_of
from jaxmodels.convert.core import to_state_dict
from jaxmodels.convert.hub import from_pretrained, load_decoder
from jaxmodels.convert.table import Parameter
from jaxmodels.convert.tables import table_of
from jaxmodels.convert.torch_io import to_torch
from jaxmodels.data.tokens import BOS_ID, PAD_ID
from jaxmodels.training.batches import batches
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.optimizer import is_decayed, schedule
from jaxmodels.training.task import Task
from jaxmodels.training.tasks.captioning import END, Captioning
from jaxmodels.training.tasks.classification import Classification
from jaxmodels.training.tasks.denoising import Denoiser, Denoising, probe_grid
from jaxmodels.training.tasks.language import PADDING, LanguageModelling
from torch_reference.losses import (
    cross_entropy,
    denoising_iters,
    image_from_patches,
    mean_cross_entropy,
    squared_error,
)


class TorchTask:
    """A task on a fresh PyTorch model; torch's global seed decides its weights.

    Attributes:
      model: the published architecture.
      decoder: what `Denoising` trains beside it; None elsewhere.
    """

    def __init__(self, task: Task) -> None:
        self.task: Any = task
        ours = nnx.eval_shape(lambda: task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0)))
        published = ours.glom if isinstance(ours, Denoiser) else ours
        self.model: Any = reference_of(published)
        self.decoder: Any = None
        if isinstance(task, Denoising):
            self.decoder = torch.nn.Linear(task.config.dim, 3 * task.config.patch_size**2)
        self.decayed = {
            e.theirs for e in table_of(published) if isinstance(e, Parameter) and is_decayed(e.ours)
        }

    def load(self, folder: Path) -> "TorchTask":
        """Takes over the weights that `jaxmodels train` saved in a run's `model` folder; strict."""
        weights = to_state_dict(from_pretrained(folder))
        self.model.load_state_dict({key: to_torch(value) for key, value in weights.items()})
        if self.decoder is not None:
            decoder = load_decoder(folder)
            self.decoder.load_state_dict(
                {
                    "weight": torch.from_numpy(decoder["decoder.kernel"].T.copy()),
                    "bias": torch.from_numpy(decoder["decoder.bias"]),
                }
            )
        return self

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The same parameters are decayed as in JAX."""
        decayed, other = [], []
        for name, parameter in self.model.named_parameters():
            (decayed if name in self.decayed else other).append(parameter)
        if self.decoder is not None:
            decayed.append(self.decoder.weight)
            other.append(self.decoder.bias)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The training loss of a batch."""
        match self.task:
            case LanguageModelling():
                losses = self._byte_losses(batch["tokens"])
                return losses.sum() / (batch["tokens"][:, 1:] != PADDING).sum()
            case Classification():
                logits = self.model(_channels_first(batch["images"]))
                smoothing = self.task.label_smoothing
                return mean_cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
            case Denoising():
                return squared_error(self._clean(batch["noised"]), batch["clean"]).mean()
            case Captioning():
                text, labels = batch["text"][:, :-1].long(), batch["text"][:, 1:].long()
                return self.model.loss(text, images=_channels_first(batch["images"]), labels=labels).total
        raise ValueError(f"task must be one of jaxmodels.training.tasks; got a {type(self.task).__name__}")

    @torch.no_grad()
    def call(self, name: str, batch: Mapping[str, np.ndarray]) -> Any:
        """What `Task.evaluate` asks for, in NumPy."""
        self.model.eval()
        tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in batch.items()}
        functions = {
            "losses": lambda: self._byte_losses(tensors["tokens"]),
            "logits": lambda: self.model(_channels_first(tensors["images"])),
            "clean": lambda: self._clean(tensors["noised"]),
            "features": lambda: self._probed(tensors["images"]),
            "outputs": lambda: self._caption_outputs(tensors),
            "caption": lambda: self._captions(tensors["images"]),
        }
        outputs = functions[name]()
        return jax.tree.map(lambda tensor: tensor.numpy(), outputs)

    def _byte_losses(self, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1].long(), tokens[:, 1:]
        return cross_entropy(self.model(inputs.clamp(min=0)), targets, ignored=PADDING)

    def _probed(self, images: Tensor) -> Tensor:
        grid = probe_grid(*images.shape[1:3], self.task.config.patch_size)
        return reduce(self._top(images), "b (x i y j) d -> b (x y d)", "mean", **grid)

    def _top(self, images: Tensor) -> Tensor:
        iters = denoising_iters(self.task.config.levels)
        return self.model(_channels_first(images), iters=iters)[:, :, -1]

    def _clean(self, noised: Tensor) -> Tensor:
        patches, patch_size = self.decoder(self._top(noised)), self.task.config.patch_size
        return image_from_patches(patches, patch_size=patch_size, height=noised.shape[1]).permute(0, 2, 3, 1)

    def _caption_outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        text, labels = batch["text"][:, :-1].long(), batch["text"][:, 1:].long()
        images = _channels_first(batch["images"])
        text_latents, image_latents = self.model.latents(text, images=images)
        _, context = self.model.embed_image(images)
        logits = self.model.decode(text, context)
        losses = cross_entropy(logits, labels, ignored=PAD_ID)
        return {
            "loss_sum": losses.sum(dim=1),
            "targets": (labels != PAD_ID).sum(dim=1).float(),
            "text_latents": text_latents,
            "image_latents": image_latents,
        }

    def _captions(self, images: Tensor) -> Tensor:
        """Greedy, as in the task."""
        _, context = self.model.embed_image(_channels_first(images))
        text = torch.full((len(images), self.task.context), PAD_ID)
        text[:, 0] = BOS_ID
        ended = torch.zeros(len(images), dtype=torch.bool)
        for position in range(1, self.task.context):
            chosen = self.model.decode(text[:, :position], context)[:, -1].argmax(dim=-1)
            text[:, position] = torch.where(ended, PAD_ID, chosen)
            ended |= chosen == ord(END) + 1
            if ended.all():
                break
        return text


def train_torch(experiment: Experiment, task: Task, *, progress: Any = lambda step, loss: None) -> TorchTask:
    """The run of `jaxmodels train` as a plain PyTorch loop in float32: same batches, same schedule, fresh weights.

    Args:
      experiment: its steps, batch size, seed and optimiser count; precision, mesh and accumulation do not.
      task: what it trains.
      progress: called with the step and its loss.
    """
    torch.manual_seed(experiment.seed)
    twin = TorchTask(task)
    config = experiment.optim
    optimizer = torch.optim.AdamW(
        twin.parameter_groups(config.weight_decay),
        lr=config.learning_rate,
        betas=(config.b1, config.b2),
        eps=config.eps,
        fused=True,
    )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rates = jax.vmap(schedule(config, experiment.steps))(jnp.arange(experiment.steps))
    stream = batches(
        task,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        sharding=SingleDeviceSharding(jax.devices()[0]),
    )
    inputs = jax.jit(task.inputs)  # bytes become numbers as in the step of JAX
    twin.model.train()
    for step, (rate, batch) in enumerate(zip(np.asarray(rates), stream, strict=False), start=1):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in inputs(batch).items()}
        optimizer.zero_grad(set_to_none=True)
        loss = twin.loss(tensors)
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        progress(step, loss.item())
    return twin


def _channels_first(images: Tensor) -> Tensor:
    """Channels first, as the published packages want images."""
    return images.permute(0, 3, 1, 2).contiguous()
