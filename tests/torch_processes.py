"""Programs that tests/test_torch.py runs: ``python -m tests.torch_processes NAME METHOD``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch.utils.data

import xshm

SHAPE = 500, 500  # of an item, float64: larger than the threshold


class Items(torch.utils.data.Dataset[Any]):
    """Items that are made by the workers."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> np.ndarray:
        return np.full(SHAPE, float(i))


class Stream(torch.utils.data.IterableDataset[Any]):
    """The same, one after the other."""

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from map(Items().__getitem__, range(8))


def collate(items: list[np.ndarray]) -> dict[str, Any]:
    """A batch of NumPy arrays."""
    return {
        "x": np.stack(items),
        "label": np.array([x[0, 0] for x in items]),
        "stats": xshm.stats(),
    }


def batches(method: str, dataset: Any = None, **options: Any) -> list[dict[str, Any]]:
    """All batches that two workers make."""
    return list(
        torch.utils.data.DataLoader(
            dataset or Items(),
            batch_size=2,
            num_workers=2,
            collate_fn=collate,
            multiprocessing_context=method,
            **options,
        )
    )


def numpy_batches(method: str) -> None:
    """They come as handles, are born in shared memory, and can be written to."""
    for dataset in (Items(), Stream()):
        before = xshm.stats()["handles_received"]
        found = batches(method, dataset)
        expected = range(0, 8, 2) if isinstance(dataset, Items) else None
        for i, batch in zip(expected or [0] * len(found), found, strict=True):
            assert type(batch["x"]) is np.ndarray
            assert batch["x"].shape == (2, *SHAPE)
            assert (batch["x"][:, 1, 1] == batch["label"]).all()
            assert expected is None or batch["label"].tolist() == [i, i + 1]
            assert batch["stats"]["bytes_copied_in"] == 0
            assert xshm.is_shared(batch["x"])
            batch["x"] += 1
        assert xshm.stats()["handles_received"] - before == len(found)


def tensors(method: str) -> None:
    """Tensors, which torch shares itself, and arrays in the same batch."""
    loader = torch.utils.data.DataLoader(
        Items(), 2, num_workers=2, collate_fn=with_tensor, multiprocessing_context=method
    )
    for x, tensor in loader:
        assert xshm.is_shared(x)
        assert tensor.is_shared()
        assert (tensor.numpy() == x).all()


def with_tensor(items: list[np.ndarray]) -> tuple[np.ndarray, torch.Tensor]:
    """A batch of both."""
    x = np.stack(items)
    return x, torch.from_numpy(x)


def queue(method: str) -> None:
    """torch's own queues and processes."""
    context = torch.multiprocessing.get_context(method)
    there, back = context.Queue(), context.SimpleQueue()
    worker = context.Process(target=work, args=(there, back))
    worker.start()
    x = np.ones(SHAPE)
    there.put(x)
    found, stats = back.get()
    worker.join()
    assert (found == 2).all()
    assert (x == 1).all()
    assert stats["handles_received"] == xshm.stats()["handles_received"] == 1


def work(there: Any, back: Any) -> None:
    """Change what comes, and send it back."""
    x = there.get()
    x += 1
    back.put((x, xshm.stats()))


if __name__ == "__main__":
    import xshm.multiprocessing

    name, method = sys.argv[1:]
    globals()[name](method)
