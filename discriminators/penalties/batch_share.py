"""The share of a batch's images that a penalty is computed on."""


def check_batch_share(name: str, share: float) -> None:
    """Raise ValueError unless `share` is above 0 and at most 1; `name`: whose it is."""
    if not 0 < share <= 1:
        raise ValueError(f"{name} needs a batch_share above 0 and at most 1, not {share}")


def share_of_images(batch: int, share: float) -> int:
    """Return how many of the first images of a micro-batch are a share of it: rounded down, one at least."""
    return max(1, int(batch * share + 1e-6))
