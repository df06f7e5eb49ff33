"""Arguments, folders, checkpoints, images, labels and weights that no command can work with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import DEBUG, sampled
from perceptual_mae.cli import main
from refusal import check_refusal

HUGE = "1" + 20 * "0"
TRAIN = ["pretrain", DEBUG, "mse", "training.epochs=1", "training.epoch_images=8", "evaluation.limit=2"]
SCORING = ("evaluate", "probe", "knn", "finetune")
OF_A_RUN = (*SCORING, "visualize", "curves", "compare", "sharpen")

# The command line and what its line says; RUN is a finished run.
ARGUMENTS = [
    # A run that is none
    *((f"{command} nowhere", "does not exist") for command in OF_A_RUN),
    *((f"{command} empty", "empty") for command in OF_A_RUN),
    *((f"{command} notes.txt", "notes.txt") for command in OF_A_RUN),
    # Numbers out of range
    *((f"{command} RUN --limit {value}", "limit") for command in ("probe", "knn", "finetune")
      for value in ("0", "-5", "x", "1.5")),
    *((f"{command} RUN --test-limit {value}", "test-limit") for command in ("probe", "knn", "finetune")
      for value in ("0", "-1")),
    *((f"{command} RUN --seeds {value}", "seeds") for command in ("probe", "finetune")
      for value in ("-1", "1,1", "a", "''", HUGE)),
    *((f"evaluate RUN {words}", words.split()[0]) for words in (
        "--ratio -0.1", "--ratio 1", "--ratio nan", "--ratio x", "--seed -1", f"--seed {HUGE}", "--batch-size 0",
        f"--batch-size {HUGE}", "--limit 0", "--split train")),
    ("evaluate RUN --ratio 0.99", "use at most 0.9375"),
    ("evaluate RUN --mask diagonal", "mask"),
    ("evaluate RUN --metrics psnr,nonsense", "nonsense"),
    ("evaluate RUN --require nonsense", "nonsense"),
    ("evaluate RUN --features nowhere.pt", "nowhere.pt"),
    ("evaluate RUN --features notes.txt", "notes.txt"),
    ("evaluate RUN --features resnet:x", "resnet"),
    ("evaluate RUN --features run:nowhere", "nowhere"),
    ("evaluate RUN --data nowhere", "nowhere"),
    ("evaluate RUN --ema", "leave out --ema"),
    ("evaluate RUN --out scores.txt", "--out"),
    ("evaluate RUN --out empty", "--out"),
    ("evaluate RUN training.epochs=3", "training.epochs"),
    ("evaluate RUN data.num_images=-1", "data.num_images"),
    *((f"embed {name} photo.png --out x.npz", name) for name in ("nowhere", "empty", "notes.txt")),
    *((f"embed RUN {words} --out x.npz", names) for words, names in (
        ("", "Missing argument"), ("nowhere.png", "nowhere.png"), ("empty", "no image below empty"),
        ("html.jpg", "html.jpg cannot be read"), ("html.jpg empty.png", "nor any other of 2 images"),
        ("truncated.jpg", "truncated.jpg cannot be read"),
        ("unlabelled photo.png", "unlabelled: is a folder among 2 arguments"),
        ("photo.png --tokens nonsense", "nonsense"), ("photo.png --tokens patch", "did you mean 'patches'"),
        ("photo.png --tokens ''", "--tokens"), ("photo.png --layer 0", "--layer"),
        ("photo.png --layer 3", "the encoder has blocks 1 to 2"), (f"photo.png --layer {HUGE}", "--layer"),
        ("photo.png --ema", "leave out --ema"))),
    ("embed RUN photo.png", "Missing option '--out'"),
    *((f"embed RUN photo.png --out {name}", names) for name, names in (
        ("x.txt", ".npz or .parquet"), ("x", ".npz or .parquet"), ("empty", "empty"), ("x.json", ".npz or .parquet"),
        ("photo.png/x.npz", "photo.png is not a folder"))),
    *((f"compare-images {words}", names) for words, names in (
        ("unlabelled", "Missing argument"), ("nowhere unlabelled", "nowhere: does not exist"),
        ("unlabelled nowhere", "nowhere: does not exist"), ("photo.png unlabelled", "photo.png: is a file"),
        ("unlabelled photo.png", "photo.png: is a file"), ("empty unlabelled", "no image below empty"),
        ("unlabelled empty", "no image below empty"))),
    *((f"compare-images unlabelled unlabelled {words}", names) for words, names in (
        ("--metrics nonsense", "nonsense"), ("--metrics patch_std", "patch_std"), ("--require nonsense", "nonsense"),
        ("--require fid", "pmae weights fetch inception"), ("--metrics fid", "nothing can be scored: fid[inception]"),
        ("--features nowhere.pt", "nowhere.pt"), ("--size x", "--size"), ("--size 0", "--size"),
        ("--size 8x8x8", "--size"), (f"--size {HUGE}", "--size"), ("--size -1", "--size"), ("--seed -1", "--seed"),
        ("--out scores.txt", "--out"), ("--out empty", "--out"),
        ("--out photo.png/x.json", "photo.png is not a folder"))),
    ("evaluate RUN --out photo.png/x.json", "photo.png is not a folder"),
    *((f"knn RUN {words}", words.split()[0]) for words in (
        "--neighbours 0", "--neighbours a,b", "--neighbours 5,5", "--temperature 0", "--temperature nan",
        "--temperature inf", f"--neighbours {HUGE}")),
    *((f"probe RUN {words}", words.split()[0]) for words in (
        "--epochs 0", "--batch-size 1", "--protocol simclr", "--head cubic", "--optimizer adam")),
    ("probe RUN --epochs 3", "--epochs"),
    ("probe RUN --protocol mae --layers", "--layers"),
    ("probe RUN --layers --baselines", "--baselines"),
    ("probe RUN --protocol mae --optimizer sgd", "--optimizer"),
    ("probe RUN --data empty", "empty"),
    ("probe RUN --data unlabelled", "unlabelled"),
    *((f"finetune RUN {words}", words.split()[0].strip("-")) for words in (
        "--epochs 0", "--batch-size 1", "--fraction 0", "--fraction 2", "--fraction nan",
        "--recipe tiny", "--save notes.txt")),
    *((f"finetune RUN {words}", "lr") for words in ("--lr 0", "--lr -1", "--lr nan", "--lr inf")),
    ("finetune RUN --set nonsense=1", "nonsense"),
    ("finetune RUN --set epochs=many", "epochs"),
    ("finetune RUN --set drop_path=1", "drop_path"),
    ("finetune RUN --set mixup=inf", "mixup"),
    ("finetune RUN --set epochs", "epochs"),
    (f"finetune RUN --set epochs={HUGE}", "epochs"),
    ("finetune RUN --fraction 0.1 --limit 10", "leave one out"),
    ("finetune RUN --from-scratch --ema", "leave out"),
    *((f"segment {words}", names) for words, names in (
        ("RUN", "Missing argument"), ("RUN nonsense", "nonsense"), ("RUN nowhere.yaml", "nowhere.yaml"),
        ("RUN notes.yaml", "notes.yaml"), ("nowhere camvid", "nowhere"), ("timm:nonsense camvid", "nonsense"),
        ("RUN camvid", "data.root"), ("RUN camvid --root empty", "empty"), ("RUN camvid --root notes.txt", "notes.txt"),
        ("RUN camvid optimizer.lr=inf", "optimizer.lr"), ("RUN camvid optimizer.lr=0", "optimizer.lr"),
        (f"RUN camvid schedule.steps={HUGE}", "schedule.steps"), ("RUN camvid augment.crop=[7,7]", "augment.crop"),
        ("RUN camvid head.pools=[0]", "head.pools"), ("RUN camvid nonsense.key=1", "nonsense"),
        ("RUN camvid --seeds x", "--seeds"), (f"RUN camvid --seeds {HUGE}", "--seeds"),
        ("RUN camvid --limit 0", "limit"), ("RUN camvid --from-scratch --ema", "leave out"),
        ("RUN camvid --ema --root empty", "averaged"))),
    *((f"visualize RUN {words}", words.split()[0]) for words in (
        "--ratio -1", "--ratio 1", "--ratio nan", "--seed -1", f"--seed {HUGE}", "--count 0", "--view upside",
        "--keep 0.5", "--keep 2 --attention", "--keep nan --attention")),
    ("visualize RUN --ratio 0.99", "use at most 0.9375"),
    ("visualize RUN --attention --ratio 0.5", "leave out --ratio"),
    ("visualize RUN --beside nowhere", "nowhere"),
    *((f"visualize RUN {name}", name) for name in (
        "nowhere.png", "empty.png", "notes.txt", "html.jpg", "truncated.jpg", "truncated.png", "empty")),
    ("visualize RUN photo.png --out empty", "empty"),
    *((f"demo {name} --share-folder new", name) for name in ("nowhere", "empty", "notes.txt")),
    *((f"demo RUN {words}", names) for words, names in (
        ("--share-folder", "requires an argument"), ("--port 0", "--port"), ("--port 65536", "--port"),
        ("--count -1", "--count"), ("nowhere", "nowhere"),
        ("--share-folder new --image html.jpg", "html.jpg: cannot be read"),
        ("--share-folder new --image nowhere.png", "nowhere.png: cannot be read"),
        ("--share-folder new --count 0", "no image to show"), ("--share-folder new --port 8000", "leave out --port"),
        ("--share-folder RUN", "holds files already"), ("--share-folder notes.txt", "is a file"))),
    *((f"bench DEBUG mse {words}", words.split()[0].strip("-")) for words in (
        "--rounds 0", f"--rounds {HUGE}", "--warmup 0", "--threads 0", f"--threads {HUGE}", "--batch-size 0",
        "--json empty", "--json nowhere/x.json")),
    ("bench DEBUG mse --against nonsense", "nonsense"),
    ("curves RUN --key nonsense", "nonsense"),
    ("curves RUN --out empty", "empty"),
    ("compare RUN --format pdf", "--format"),
    ("compare RUN --bench nowhere.json", "nowhere.json"),
    ("compare RUN --bench notes.txt", "notes.txt"),
    ("compare RUN --out notes.txt", "--out"),
    *((f"sharpen RUN {words}", words.split()[0].strip("-")) for words in (
        "--share 0", "--share nan", "--share inf", "--share -1", "--decoder none", "nonsense")),
    *((f"sweep DEBUG mse --out sweep {words}", names) for words, names in (
        ("", "nothing to sweep over"), ("--grid optimizer.lr", "optimizer.lr"), ("--grid =1", "grid"),
        ("--grid optimizer.lr=inf,1", "optimizer.lr"), ("--grid optimizer.lr=", "optimizer.lr"),
        ("--grid optimizer.rate=1", "optimizer.rate"), ("--seeds x", "--seeds"), ("--seeds -1", "--seeds"),
        (f"--seeds {HUGE}", "seed"), ("--grid layer=nonsense", "nonsense"),
        ("--grid masking.ratio=0.5,0.999", "0.999"))),
    ("sweep DEBUG mse --out notes.txt --seeds 0", "notes.txt"),
    ("pretrain", "Missing argument"),
    ("pretrain nonsense", "unknown layer"),
    ("pretrain nowhere.yaml", "does not exist"),
    ("pretrain empty.yaml/", "empty.yaml"),
    ("pretrain notes.yaml", "notes.yaml"),
    ("pretrain DEBUG mse =1", "an override is"),
    ("pretrain DEBUG mse training..epochs=1", "an override is"),
    ("pretrain DEBUG mse --out notes.txt", "notes.txt"),
    ("pretrain DEBUG mse --outt x", "--outt"),
    ("pretrain DEBUG mse data={kind: image_folder, root: nowhere, size: null, num_images: null} --out new", "nowhere"),
    ("pretrain DEBUG mse data={kind: image_folder, root: empty, size: null, num_images: null} --out new", "empty"),
    ("pretrain DEBUG mse data={kind: cifar10, root: empty, size: null, num_images: null} --out new", "empty"),
    ("pretrain DEBUG mse data={kind: stl10, root: empty, size: null, num_images: null} --out new", "empty"),
    ("pretrain DEBUG mse generator.init_from=nowhere --out new", "nowhere"),
    ("pretrain DEBUG mse generator.init_from=notes.txt --out new", "notes.txt"),
    ("configs nonsense", "unknown layer"),
    ("configs DEBUG training.epochs=-1", "training.epochs"),
    ("weights fetch nonsense", "nonsense"),
    ("weights check nonsense", "nonsense"),
    ("weights fetch inception --from nowhere", "nowhere"),
    ("weights fetch inception vgg16 --url http://localhost/x", "--url"),
    ("weights fetch", "Missing argument"),
    ("nonsense", "nonsense"),
    ("--nonsense", "nonsense"),
]  # fmt: skip


def empty_config(run: Path) -> None:
    (run / "config.yaml").write_text("")


def broken_config(run: Path) -> None:
    (run / "config.yaml").write_text("training: [1\nseed: 2")


def other_config(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("width: 32", "width: 64"))


def infinite_config(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("lr: 0.001", "lr: inf"))


def no_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def no_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def truncated_weights(run: Path) -> None:
    for path in run.glob("checkpoints/*/generator.safetensors"):
        path.write_bytes(path.read_bytes()[:100])


def no_manifest(run: Path) -> None:
    for path in run.glob("checkpoints/*/manifest.json"):
        path.unlink()


DAMAGES = (empty_config, broken_config, other_config, infinite_config, no_config, no_checkpoints, truncated_weights,
           no_manifest)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*TRAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and files of all sorts next to it."""
    path = tmp_path_factory.mktemp("odd")
    shutil.copytree(finished, path / "run")
    (path / "empty").mkdir()
    (path / "empty.yaml").mkdir()
    (path / "notes.txt").write_text("no picture, no network, no configuration\n")
    (path / "notes.yaml").write_text("a note\n")
    (path / "empty.png").touch()
    (path / "html.jpg").write_text("<html><body>404</body></html>")
    photo = Image.radial_gradient("L").convert("RGB")
    photo.save(path / "photo.png")
    for name in ("truncated.jpg", "truncated.png"):
        photo.save(path / name)
        (path / name).write_bytes((path / name).read_bytes()[:400])
    for part in ("train", "test"):
        (path / "unlabelled" / part).mkdir(parents=True)
        for number in range(4):
            photo.save(path / "unlabelled" / part / f"{number}.png")
    return path


@pytest.mark.parametrize(("words", "names"), sampled(ARGUMENTS, [words[:70] for words, _ in ARGUMENTS]))
def test_a_command_line_that_cannot_work_is_refused_in_one_line(
    words: str, names: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PMAE_WEIGHTS", str(folder / "empty"))
    places = {"RUN": "run", "DEBUG": DEBUG, "''": ""}
    mapping = words.find("data={")
    split = words.split() if mapping < 0 else [
        *words[:mapping].split(), words[mapping:].partition("}")[0] + "}", *words.partition("}")[2].split()
    ]  # fmt: skip
    check_refusal([places.get(word, word) for word in split], names, folder, capsys)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("command", ["evaluate", "probe", "knn", "finetune", "visualize", "demo", "embed"])
def test_a_damaged_run_is_refused_in_one_line(
    command: str, damage: Callable[[Path], None], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    damage(Path(shutil.copytree(finished, tmp_path / "run")))
    Image.new("RGB", (40, 40)).save("photo.png")
    more = {"embed": ["photo.png", "--out", "x.npz"], "demo": ["--share-folder", "new"]}
    check_refusal([command, "run", *more.get(command, [])], "run", tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "text"),
    [("summary.json", "{"), ("summary.json", "[]"), ("metrics.jsonl", "{\n"), ("metrics.jsonl", "[1]\n"),
     ("evaluation/knn.json", "{"), ("evaluation/knn.json", json.dumps([1]))],
)  # fmt: skip
@pytest.mark.parametrize("command", ["compare", "curves"])
def test_files_of_scores_that_are_damaged_end_no_report_in_a_traceback(
    command: str, name: str, text: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(text)
    assert main([command, "run"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
