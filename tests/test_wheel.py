"""The wheel: built, installed beside nothing but its dependencies, it runs where a foreign `pipelines/` lies about."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_runs_a_job_from_a_folder_that_holds_a_foreign_pipelines(tmp_path: Path) -> None:
    built = tmp_path / "built"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = built.glob("rowmill-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pipelines", "connectors"}
    assert {"pipelines/py.typed", "connectors/py.typed", "pipelines/starter/data/reviews.csv"} <= set(names)

    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = next(home.glob("lib/python*/site-packages"))
    # The dependencies are those that the tests run with; the project itself is not among them.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*install, "--quiet", "--disable-pip-version-check"], check=True)

    folder = tmp_path / "elsewhere"
    (folder / "pipelines").mkdir(parents=True)
    (folder / "pipelines" / "__init__.py").write_text("raise RuntimeError('somebody else wrote this')\n")
    rowmill = home / "bin" / "rowmill"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([rowmill, "init", "mine"], cwd=folder, env=clean, check=True, stdout=subprocess.DEVNULL)
    run = [rowmill, "run", "mine/jobs/quickstart.yaml", "--json", "--quiet"]
    ended = subprocess.run(run, cwd=folder, env=clean, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["rows_ok"] == 200
