"""The command line: fixed names, clear errors, right files."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

import acorn_svc
from acorn_svc import cli
from acorn_svc.field.kinds import as_shape
from acorn_svc.formats.container import read_field
from acorn_svc.formats.images import encode_image, read_image
from acorn_svc.formats.meshes import read_mesh
from acorn_svc.training import loop

Run = Callable[..., tuple[int, str, str]]
STEPS = ("--steps", "6", "--threads", "1", "--blocks", "16")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process: exit code, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = np.meshgrid(np.arange(48), np.arange(40))
    pixels = np.stack([x * 5, y * 6, (x ^ y) * 4], axis=-1).astype(np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    path.write_bytes(encode_image(pixels, "png"))
    return path


@pytest.fixture(scope="session")
def model(photo: Path) -> Path:
    path = photo.with_name("photo.acorn")
    with pytest.raises(SystemExit) as caught:
        cli.main(["fit", str(photo), "-o", str(path), *STEPS])
    assert caught.value.code == 0
    return path


def test_fit_writes_a_field_and_says_what_it_is(run: Run, photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.acorn"
    code, out, _ = run("fit", photo, "-o", path, "--preset", "draft", *STEPS)
    field = read_field(path)
    assert code == 0
    assert (field.width, field.height, field.channels) == (48, 40, 3)
    assert field.info().steps == 6
    assert f"{len(field.blocks())} blocks" in out
    assert f"{path.stat().st_size} bytes" in out
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("encoder", ["grid", "coordinate"])
def test_options_reach_the_fit(run: Run, photo: Path, tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "x.acorn"
    code, _, _ = run("fit", photo, "-o", path, *STEPS, "--encoder", encoder, "--seed", 7)
    info = read_field(path).info()
    assert (code, info.encoder, info.seed) == (0, encoder, 7)
    assert info.blocks <= 16


def test_a_psnr_stops_the_fit_early(run: Run, photo: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.acorn"
    code, _, _ = run("fit", photo, "-o", path, "--steps", 500, "--threads", 1, "--psnr", 5)
    assert code == 0
    assert read_field(path).info().steps < 500


def _interrupting(progresses: int) -> Callable[..., Iterator[loop.Progress]]:
    """The loop, but somebody presses Ctrl-C after so many progresses."""
    real = loop.fit

    def fit(*arguments: Any) -> Iterator[loop.Progress]:
        for number, progress in enumerate(real(*arguments)):
            if number == progresses:
                os.kill(os.getpid(), signal.SIGINT)
            yield progress

    return fit


def test_ctrl_c_and_resume_end_as_if_nothing_had_happened(
    run: Run, photo: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.acorn"
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "REPORT_SECONDS", 0.0)
        patch.setattr(loop, "fit", _interrupting(2))
        code, _, err = run("fit", photo, "-o", path, *STEPS)
    assert code == 130
    assert "--resume" in err
    assert [file.name for file in tmp_path.iterdir()] == ["x.acorn.state"]
    assert signal.getsignal(signal.SIGINT) is handler
    assert run("fit", photo, "-o", path, *STEPS, "--resume")[0] == 0
    assert path.read_bytes() == model.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_are_kept_while_the_fit_runs(
    run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.acorn"
    seen = []
    real = loop.fit

    def fit(*arguments: Any) -> Iterator[loop.Progress]:
        for progress in real(*arguments):
            seen.append(path.with_name("x.acorn.state").exists())
            yield progress

    monkeypatch.setattr(cli, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "fit", fit)
    run("fit", photo, "-o", path, *STEPS)
    assert seen[0] is False
    assert all(seen[1:])


def test_a_checkpoint_of_another_image_is_refused(run: Run, photo: Path, tmp_path: Path) -> None:
    from acorn_svc.formats.checkpoint import Checkpoint
    from acorn_svc.training.state import FitState

    path = tmp_path / "x.acorn"
    Checkpoint(tmp_path / "x.acorn.state", np.zeros((1, 1, 1), np.uint8)).write(FitState({}, {}))
    code, _, err = run("fit", photo, "-o", path, "--resume")
    assert (code, err) == (1, "Error: The checkpoint belongs to another original.\n")


def test_info_tells_everything_that_scripts_need(run: Run, model: Path) -> None:
    code, out, _ = run("info", model, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts.keys() >= {
        "kind", "width", "height", "channels", "encoder", "blocks", "levels", "parameters", "bytes",
        "psnr",
    }  # fmt: skip
    assert (facts["kind"], facts["width"], facts["height"]) == ("image", 48, 40)
    assert facts["bytes"] == model.stat().st_size
    assert facts["psnr"] > 5
    table = run("info", model)[1]
    assert all(name in table for name in facts)


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_render_writes_what_the_field_renders(run: Run, model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    field = read_field(model)
    assert run("render", model, "-o", path)[0] == 0
    assert np.array_equal(read_image(path), field.render())
    assert run("render", model, "-o", path, "--region", "3.5,2,20,10", "--size", "70,300")[0] == 0
    assert np.array_equal(read_image(path), field.render((3.5, 2, 20, 10), (70, 300)))
    assert run("render", model, "-o", path, "--region", "3.5,2,20.4,10")[0] == 0
    assert read_image(path).shape == (10, 20, 3)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "JPG"])
def test_render_writes_lossy_files_too(run: Run, model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    assert run("render", model, "-o", path, "--size", "24,20")[0] == 0
    assert read_image(path).shape == (20, 24, 3)


@pytest.mark.parametrize(
    "options",
    [
        ("--region", "1,2,3"),
        ("--region", "a,b,c,d"),
        ("--size", "10"),
        ("--size", "1.5,2"),
        ("-o", "out.gif"),
        ("-o", "nowhere/out.png"),
        ("--surprise",),
    ],
)
def test_wrong_usage_exits_with_2(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("render", model, "-o", "out.png", *options)
    assert code == 2
    assert "Error" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--region", "40,0,20,20"),
        ("--region", "nan,0,20,20"),
        ("--size", "0,10"),
        ("--size", "16384,1", "-o", "out.webp"),
    ],
)
def test_an_impossible_view_is_one_sentence(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("render", model, "-o", "out.png", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_one_sentence(run: Run, tmp_path: Path, photo: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"nothing of the kind")
    for arguments in (("info", bad), ("render", bad, "-o", tmp_path / "x.png"),
                      ("fit", bad, "-o", tmp_path / "x.acorn"), ("info", photo)):  # fmt: skip
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("Error: ")


@pytest.mark.parametrize("options", [("--preset", "best"), ("--seconds", "-1"), ("--steps", "0")])
def test_options_are_checked(run: Run, photo: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    code, _, err = run("fit", photo, "-o", tmp_path / "x.acorn", *options)
    assert code == 2
    assert options[0] in err


@pytest.mark.parametrize(
    "command",
    ["fit", "render", "mesh", "info", "serve", "worker", "demo", "doctor", "gc", "backup", "restore"],
)
def test_help_teaches(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"acorn {command}" in out or "Usage" in out
    assert command in run("--help")[1]


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sphere with one face twice, as a file of another name."""
    path = tmp_path_factory.mktemp("scan") / "scan.txt"
    ball = trimesh.creation.icosphere(2, 3.0)
    ball.faces = np.concatenate([ball.faces, ball.faces[:1]])
    path.write_bytes(ball.export(file_type="ply"))
    return path


@pytest.fixture(scope="session")
def shape(scan: Path) -> Path:
    path = scan.with_name("scan.acorn")
    with pytest.raises(SystemExit) as caught:
        cli.main(["fit", str(scan), "-o", str(path), "--preset", "draft", "--steps", "200", "--threads", "1"])
    assert caught.value.code == 0
    return path


def test_a_mesh_is_fitted_and_what_was_mended_is_said(run: Run, scan: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.acorn"
    code, out, err = run("fit", scan, "-o", output, "--preset", "draft", "--steps", "10", "--threads", "1")
    assert code == 0
    assert "IoU 0." in out
    assert "dB" not in out
    assert "Repaired: " in err
    assert as_shape(read_field(output)).info().steps == 10


def test_goals_of_the_other_kind_are_one_sentence(run: Run, scan: Path, photo: Path, tmp_path: Path) -> None:
    for original, goal in ((scan, "--psnr"), (photo, "--iou")):
        code, _, err = run("fit", original, "-o", tmp_path / "x.acorn", goal, "1")
        assert code == 1
        assert err.splitlines()[-1].startswith(f"Error: {goal[2:]}")


@pytest.mark.parametrize("suffix", ["glb", "ply", "stl", "obj"])
def test_mesh_writes_a_closed_surface(run: Run, shape: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"x.{suffix}"
    assert run("mesh", shape, "-o", output, "--resolution", "40")[0] == 0
    mesh = trimesh.load(output, force="mesh")
    mesh.merge_vertices(merge_norm=True, merge_tex=True)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 3**3, rel=0.06)


def test_draco_makes_a_glb_smaller(run: Run, shape: Path, tmp_path: Path) -> None:
    pytest.importorskip("DracoPy")
    plain, small = tmp_path / "x.glb", tmp_path / "y.glb"
    assert run("mesh", shape, "-o", plain, "--resolution", "40")[0] == 0
    assert run("mesh", shape, "-o", small, "--resolution", "40", "--draco")[0] == 0
    assert small.stat().st_size < plain.stat().st_size / 3


def test_what_a_field_is_not_is_one_sentence(run: Run, model: Path, shape: Path, tmp_path: Path) -> None:
    for command, file, suffix in (("mesh", model, "glb"), ("render", shape, "png")):
        code, _, err = run(command, file, "-o", tmp_path / f"x.{suffix}")
        assert (code, err.count("\n")) == (1, 1)
    assert run("mesh", shape, "-o", tmp_path / "x.fbx")[0] == 2
    assert run("mesh", shape, "-o", tmp_path / "x.glb", "--resolution", "0")[0] == 2
    assert not list(tmp_path.iterdir())


def test_python_fits_files_and_meshes(scan: Path) -> None:
    mesh = read_mesh(scan).mesh
    options = {"preset": "draft", "steps": 5, "threads": 1}
    from_file, from_mesh = acorn_svc.fit(scan, **options), acorn_svc.fit(mesh, **options)
    assert isinstance(from_mesh, acorn_svc.ShapeField)
    points = mesh.vertices[:20]
    np.testing.assert_array_equal(as_shape(from_file).query(points), from_mesh.query(points))


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom acorn_svc import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pyvips', 'fastapi', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_unusable_settings_are_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACORN_MAX_IMAGE_PIXELS", "0")
    code, _, err = run("serve")
    assert (code, err.count("\n")) == (1, 1)
    assert "max_image_pixels" in err


def test_a_backup_comes_back(run: Run, tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup.tar"
    code, _, err = run("gc", "--data", data)
    assert (code, "there is no data folder" in err) == (2, True)
    data.mkdir()
    assert run("gc", "--data", data)[:2] == (0, "Removed 0 files, 0 bytes.\n")
    assert run("gc", "--older-than", "0.57", "--data", data)[0] == 0
    code, _, err = run("gc", "--older-than", "0.56", "--data", data)
    assert (code, "2048 seconds" in err) == (2, True)
    code, out, _ = run("backup", backup, "--data", data)
    assert (code, ": 0 scenes, 0 files, " in out) == (0, True)
    assert run("restore", backup, "--data", tmp_path / "again")[0] == 0
    code, _, err = run("restore", backup, "--data", tmp_path / "again")
    assert (code, "an empty data folder" in err) == (1, True)
    code, _, err = run("restore", __file__, "--data", tmp_path / "other")
    assert (code, "neither a folder nor a tar file" in err) == (1, True)


def test_a_database_that_is_away_is_one_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACORN_DATABASE_URL", "postgresql://acorn:secret@127.0.0.1:1/acorn")
    code, _, err = run("gc", "--data", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot be reached" in err
    assert "secret" not in err


def test_doctor_finds_what_this_test_needs(run: Run) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    for name in ("python", "torch", "libvips", "reference", "web page"):
        assert name in out


def test_eval_says_how_good_every_scale_is(run: Run, photo: Path, model: Path) -> None:
    code, out, _ = run("eval", model, photo, "--json")
    facts, field = json.loads(out), read_field(model)
    assert code == 0
    assert list(facts) == [*(f"psnr at 1/{1 << scale}" for scale in range(field.depth + 1)), "bytes"]
    assert facts["psnr at 1/1"] == pytest.approx(field.info().psnr, abs=1e-6)
    code, out, _ = run("eval", model, photo)
    assert code == 0
    assert f"{facts['psnr at 1/2']:.6g}" in out


def write_box(path: Path) -> Path:
    """A box of 1 x 2 x 3."""
    corners = [f"v {x} {y} {z}" for x in (0, 1) for y in (0, 2) for z in (0, 3)]
    faces = ["1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4"]
    path.write_text("\n".join([*corners, *(f"f {face}" for face in faces)]))
    return path


def test_eval_measures_a_shape_against_its_mesh(run: Run, tmp_path: Path) -> None:
    box, path = write_box(tmp_path / "box.obj"), tmp_path / "box.acorn"
    options = ("--preset", "draft", "--blocks", "800", "--steps", "60", "--threads", "1")
    assert run("fit", box, "-o", path, *options)[0] == 0
    code, out, err = run("eval", path, box, "--json", "--points", "20000", "--resolution", "64")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["bytes"] == path.stat().st_size
    assert 0.9 < facts["iou"] <= 1
    assert facts["near_iou"] <= facts["iou"]
    assert 0 < facts["chamfer"] < 1e-4
    assert 0 < facts["normal_error"] < 20
    assert facts["psnr"] is None
    code, out, _ = run("eval", path, box, "--points", "20000", "--resolution", "64")
    assert f"{facts['iou']:.6g}" in out


def test_eval_refuses_what_the_field_was_not_fitted_to(
    run: Run, photo: Path, model: Path, tmp_path: Path
) -> None:
    code, _, err = run("eval", model, write_box(tmp_path / "box.obj"))
    assert code == 1
    assert "mesh" in err
    other = tmp_path / "other.png"
    other.write_bytes(encode_image(np.zeros((5, 6, 3), np.uint8), "png"))
    code, _, err = run("eval", model, other)
    assert code == 1
    assert "differ" in err
