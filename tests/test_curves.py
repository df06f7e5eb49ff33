"""scripts/curves.py draws what runs have logged."""

import json
import runpy
from pathlib import Path

from PIL import Image

from conftest import debug_config
from perceptual_mae.pretraining import pretrain
from perceptual_mae.run import Run

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts/curves.py"))


def test_a_figure_shows_what_each_run_logged_over_the_images_it_saw(tmp_path: Path) -> None:
    runs = {}
    for method in ("mse", "msg_gan_p"):
        config = debug_config(method, "training.epoch_images=16", "evaluation.limit=4")
        pretrain(config, tmp_path / method, quiet=True)
        runs[method] = Run(tmp_path / method)
    records = [json.loads(line) for line in (tmp_path / "msg_gan_p/metrics.jsonl").read_text().splitlines()]
    shares = [record["gradient_share"]["decoder"]["l1"] for record in records if "gradient_share" in record]
    seen, values = SCRIPT["series"](runs["msg_gan_p"], "gradient_share.decoder.l1")
    assert values == shares
    assert seen == [record["step"] * 8 / 1000 for record in records if "gradient_share" in record]
    assert SCRIPT["series"](runs["mse"], "gradient_share.decoder.l1") == ([], [])
    SCRIPT["draw"](runs, ["evaluation.psnr_masked", "raw.l1"], tmp_path / "figures/curves.png")
    with Image.open(tmp_path / "figures/curves.png") as figure:
        assert figure.width > figure.height
