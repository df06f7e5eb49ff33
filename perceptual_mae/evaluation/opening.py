"""A run opened for scoring its representation: its weights, labelled images, the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from perceptual_mae.errors import UserError
from perceptual_mae.evaluation.labelled_data import LabelledData, open_labelled, with_data
from perceptual_mae.evaluation.subjects import make_accelerator
from perceptual_mae.run import Run


@dataclass(frozen=True)
class Opened:
    """A run, the labelled images it is scored on, and which of its weights (None: averaged where there are any)."""

    run: Run
    data: LabelledData
    accelerator: Accelerator
    ema: bool | None

    @property
    def is_main_process(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def default_path(self, name: str) -> Path:
        """Return where the scores go: evaluation/ of the run, a name of their own for other data, split or limit."""
        parts = [name]
        if self.data.name != self.run.config.data.kind:
            parts.append(Path(self.data.name).stem)
        if self.data.split != self.run.config.evaluation.split:
            parts.append(self.data.split)
        parts += [str(limit) for limit in (self.data.limit, self.data.test_limit) if limit is not None]
        parts += [] if self.ema is None else ["ema" if self.ema else "no_ema"]
        return self.run.path / "evaluation" / f"{'_'.join(parts)}.json"


def open_run(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    ema: bool | None = None,
) -> Opened:
    """Open a run folder or checkpoint, and the labelled images to score it on (see `with_data` and `open_labelled`).

    Raises UserError for what is not there.
    """
    run = Run(path)
    if ema and not run.has_ema:
        raise UserError(f"{run.checkpoint}: holds no averaged weights; leave out --ema")
    config = with_data(run.config, data, overrides)
    labelled = open_labelled(config, name=data, split=split, limit=limit, test_limit=test_limit)
    return Opened(run, labelled, make_accelerator(run.config), ema)
