"""Compares this machine with what the project needs: a row each, ok / warning / fail, with what to do about it.

A row is `fail` only for what nobody can work with (a package is missing, Open3D cannot draw). No GPU and no data are
warnings: checking data, the tests and the demo need neither. Anything that could take the process down with it (CUDA,
drawing) runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from glob import glob
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from mapanything.cli.data import DEPTH, DOCTOR, IMAGES
from mapanything.environment import Fingerprint, fingerprint, in_container, requirement_lines, torch_variant
from mapanything.errors import InputError, run_command
from mapanything.opv2v.layout import find_splits, list_folders

ROOT = Path(__file__).parents[2]
OK, WARNING, FAIL = "ok", "warning", "fail"
DRIVERS = {"13": 580, "12": 525}  # the oldest that torch's wheels for each CUDA run with
GIB = 1024**3
CARD_GIB, SHM_GIB, DISK_GIB = 22, 4, 60  # a "24 GB" card; batches between loader processes; a run's checkpoints
SUDO = "" if os.geteuid() == 0 else "sudo "
APT_LINE = f"{SUDO}apt-get update && {SUDO}apt-get install -y libegl1 libgl1 libusb-1.0-0"
NEW_ENVIRONMENT = "build the image again" if in_container() else "remove .venv and run ./invoke again"
TOOLKIT = "install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker, and restart docker"


@dataclass(frozen=True, slots=True)
class Row:
    """One finding: what is there, what should be, and what to do where the two differ."""

    name: str
    status: str
    found: str
    wanted: str = ""
    remedy: str = ""


def check_identity(found: Fingerprint) -> list[Row]:
    """The rows that a run's manifest will name; nothing here is good or bad."""
    commit = found["commit"][:12] if found["commit"] else "no commit known"
    commit += ", changed since" if found["dirty"] else ""
    rows = [Row("code", OK, f"{commit} (sha256 {found['code_sha256'][:12]})")]
    lock = found["lock_sha256"]
    rows.append(Row("lock", OK, f"sha256 {lock[:12]}" if lock else "not made from a lock"))
    if found["image_contents"]:
        rows.append(Row("image", OK, f"contents {found['image_contents'][:19]}"))
    return rows


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> list[Row]:
    found, wanted = ".".join(map(str, version)), "3.11 to 3.13"
    if (3, 11) <= version[:2] <= (3, 13):
        return [Row("Python", OK, found, wanted)]
    return [Row("Python", FAIL, found, wanted, "install one, then set MAPANYTHING_PYTHON and run ./invoke")]


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_packages(version_of: Callable[[str], str | None] = installed_version) -> list[Row]:
    """A row per locked package that this Python needs, against the lock of the torch variant that is installed."""
    variant = torch_variant() or "cuda13"
    rows = [Row("torch variant", OK, variant, remedy="")]
    for line in requirement_lines(ROOT / "requirements" / f"{variant}.txt"):
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        found = version_of(wanted.name)
        if found is not None and str(wanted.specifier) == f"=={found}":
            rows.append(Row(wanted.name, OK, found, found))
        else:
            version = str(wanted.specifier).removeprefix("==")
            rows.append(Row(wanted.name, FAIL, found or "missing", version, NEW_ENVIRONMENT))
    return rows


def run_python(code: str, timeout_s: float) -> tuple[dict, str]:
    """Runs Python code in a process of its own: the JSON it printed last, or {} and what went wrong in one line."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {timeout_s:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    errors = done.stderr.strip().splitlines() or [""]
    return {}, f"died of signal {-done.returncode}" if done.returncode < 0 else errors[-1][:200]


ASK_TORCH = """
import json, torch
cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
for card in cards:
    torch.ones(8, device=f"cuda:{card}").sum().item()
properties = [torch.cuda.get_device_properties(card) for card in cards]
print(json.dumps({"cuda": torch.version.cuda, "cards": [[p.name, p.total_memory] for p in properties]}))
"""


def read_driver() -> str | None:
    """The NVIDIA driver's version, as the bootstrap reads it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        if shutil.which("nvidia-smi") is None:
            return None
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            text = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
    found = re.search(r"(?:^|\s)(\d{3,}\.[\d.]+)", text)
    return found[1] if found else None


def check_gpu(driver: str | None, ask: Callable[[], tuple[dict, str]] = lambda: run_python(ASK_TORCH, 120)) -> list[Row]:
    """Driver, CUDA as torch sees it, and each card."""
    torch, problem = ask()
    if not torch:
        return [Row("torch", FAIL, problem, "can be imported and used", NEW_ENVIRONMENT)]
    cuda = torch["cuda"].split(".")[0] if torch["cuda"] else None
    least = DRIVERS.get(cuda or "12", DRIVERS["13"])
    wanted = f">= {least}"
    if driver is None:
        remedy = "for training, install NVIDIA's driver" + (" on the host" if in_container() else "")
        return [Row("NVIDIA driver", WARNING, "none", wanted, remedy)]
    number = int(driver.split(".")[0])
    new_enough = number >= least
    fitting = next((f"cuda{major}" for major, oldest in DRIVERS.items() if number >= oldest), None)
    other = f"use another image: TORCH_VARIANT={fitting or 'cuda12'} in .env"
    if not in_container():
        other = f"MAPANYTHING_TORCH={fitting} ./invoke doctor"
    remedy = "" if new_enough else other if fitting else "update the driver"
    rows = [Row("NVIDIA driver", OK if new_enough else WARNING, driver, wanted, remedy)]
    if cuda is None:
        remedy = other if fitting else "update the driver, then run ./invoke again"
        if in_container() and fitting is None:
            remedy = f"{other}, and update the driver"
        return [*rows, Row("CUDA", WARNING, "torch is the CPU variant", "CUDA 12 or 13", remedy)]
    if not torch["cards"]:
        remedy = "see nvidia-smi; is CUDA_VISIBLE_DEVICES empty, is the driver loaded?"
        status = FAIL if new_enough else WARNING
        if in_container() and not glob("/dev/nvidia[0-9]*"):
            # The host's driver shows in every container; the cards only where they were asked for.
            remedy, status = f"ask for the GPUs: docker compose run --rm gpu; where that fails, on the host {TOOLKIT}", WARNING
        return [*rows, Row("CUDA", status, "torch sees no GPU", f"CUDA {torch['cuda']}", remedy)]
    rows.append(Row("CUDA", OK, torch["cuda"], "12 or 13"))
    for number, (name, memory) in enumerate(torch["cards"]):
        enough = memory >= CARD_GIB * GIB
        remedy = "" if enough else "lower train_params.max_num_of_imgs_per_gpu"
        rows.append(Row(f"GPU {number}", OK if enough else WARNING, f"{name}, {gib(memory)}", "24 GB", remedy))
    return rows


def check_docker(driver: str | None, has: Callable[[str], object] = shutil.which) -> list[Row]:
    """Finds out whether containers on this host get its GPUs; no row where there is no docker or no GPU."""
    if driver is None or in_container() or not has("docker"):
        return []
    if has("nvidia-container-runtime-hook") or has("nvidia-ctk"):
        return [Row("containers", OK, "NVIDIA container toolkit is there")]
    return [Row("containers", WARNING, "docker cannot hand in the GPUs", "NVIDIA container toolkit", TOOLKIT)]


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def check_space(
    shm_bytes: int | None = None,
    disk_bytes: int | None = None,
    free: Callable[[str], int] = lambda p: shutil.disk_usage(p).free,
) -> list[Row]:
    """Shared memory, through which loader processes hand over batches, and room for results."""
    shm = shm_bytes if shm_bytes is not None else (free("/dev/shm") if os.path.isdir("/dev/shm") else 0)
    disk = disk_bytes if disk_bytes is not None else free(str(ROOT))
    shm_remedy = "in a container: --shm-size=16g (compose: shm_size: 16g); on a host: mount -o remount,size=16g /dev/shm"
    disk_status = OK if disk >= DISK_GIB * GIB else (WARNING if disk >= GIB else FAIL)
    return [
        Row("/dev/shm", *least(shm, SHM_GIB, shm_remedy)),
        Row("free disk", disk_status, *least(disk, DISK_GIB, "make room, or link experiments/ to a larger disk")[1:]),
    ]


def least(size: int, wanted_gib: int, remedy: str) -> tuple[str, str, str, str]:
    enough = size >= wanted_gib * GIB
    return OK if enough else WARNING, gib(size), f">= {wanted_gib} GiB", "" if enough else remedy


def check_mount(path: Path, option: str) -> Row:
    """One of the two data mounts: where it leads and what lies there."""
    name, wanted = f"data/{path.name}", "link or mount with splits"
    remedy = f"./invoke link-data --{option} DIR"
    if in_container():
        remedy = f"mount it: set OPV2V_{option.upper()} in .env (without compose: docker run --volume DIR:{path}:ro)"
    if not os.path.lexists(path):
        return Row(name, WARNING, "not there", wanted, remedy)
    place = f"-> {path.resolve()}: " if path.is_symlink() else ""
    try:
        splits = [f"{split} {len(list_folders(path / split))}" for split in find_splits(path)]
    except InputError as error:
        if option == "depth" and path.is_dir() and not any(path.iterdir()):
            remedy = f"make-depth makes depth maps; or {remedy}"
        return Row(name, WARNING, str(error).removeprefix(f"{path}: "), wanted, remedy)
    return Row(name, OK, f"{place}{', '.join(splits)} scenarios", wanted)


def check_data(root: Path = ROOT) -> list[Row]:
    return [check_mount(root / IMAGES, "images"), check_mount(root / DEPTH, "depth")]


DRAW = """
import json, os, sys, numpy, open3d
open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)
window = open3d.visualization.Visualizer()
if not window.create_window(width=160, height=120, visible=False):
    sys.exit("Open3D cannot make a window without a display (no EGL)")
window.add_geometry(open3d.geometry.TriangleMesh.create_box())
window.poll_events()
window.update_renderer()
picture = numpy.asarray(window.capture_screen_float_buffer(False))
print(json.dumps({"size": picture.shape[:2], "spread": float(picture.std())}), flush=True)
os._exit(0)  # the picture is what counts: leave out Open3D's own way out
"""


def check_rendering(draw: Callable[[], tuple[dict, str]] = lambda: run_python(DRAW, 60)) -> list[Row]:
    """Draws one picture without a display, as every task does."""
    wanted = "a picture without a display"
    drawn, problem = draw()
    if not drawn:
        library = re.search(r"(lib\S+\.so\S*): cannot open", problem)
        remedy = APT_LINE if library or "EGL" in problem else f"{APT_LINE}; then see `python -c 'import open3d'`"
        return [Row("rendering", FAIL, problem, wanted, remedy)]
    if drawn["spread"] <= 0:
        return [
            Row("rendering", FAIL, "the picture is empty", wanted, f"install Mesa: {SUDO}apt-get install -y libgl1-mesa-dri")
        ]
    return [Row("rendering", OK, "drew {1}x{0} pixels".format(*drawn["size"]), wanted)]


def examine() -> list[Row]:
    """Every row, in the order of the table. The slow ones run side by side."""
    driver = read_driver()
    with ThreadPoolExecutor() as pool:
        gpu, rendering = pool.submit(check_gpu, driver), pool.submit(check_rendering)
        rows = [*check_python(), *check_packages()]
        data = [*check_docker(driver), *check_space(), *check_data()]
        return [*check_identity(fingerprint()), *rows, *gpu.result(), *data, *rendering.result()]


def table(rows: Iterable[Row]) -> str:
    """The rows for a person; packages that are as locked take one line together."""
    shown = []
    as_locked = [row for row in rows if row.status == OK and row.wanted and row.found == row.wanted]
    for row in rows:
        if as_locked and row is as_locked[0]:
            shown.append(Row("packages", OK, f"{len(as_locked)} as locked"))
        if row not in as_locked:
            shown.append(row)
    width = max(len(row.name) for row in shown)
    lines = []
    for row in shown:
        wanted = f"  (wanted: {row.wanted})" if row.wanted and row.status != OK else ""
        lines.append(f"{row.status:<8} {row.name:<{width}}  {row.found}{wanted}")
        if row.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {row.remedy}")
    return "\n".join(lines)


def main() -> int:
    arguments = DOCTOR.parse()
    rows = examine()
    count = {status: sum(row.status == status for row in rows) for status in (OK, WARNING, FAIL)}
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "count": count, "fingerprint": fingerprint()}, indent=1))
    else:
        print(table(rows))
        print(f"{count[OK]} ok, {count[WARNING]} warnings, {count[FAIL]} failures")
    return 1 if count[FAIL] else 0


if __name__ == "__main__":
    run_command(main)
