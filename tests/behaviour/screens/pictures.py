"""Make the README's pictures from real runs: python tests/behaviour/screens/pictures.py (needs chromium).

Into .github/pictures: plan.png, progress.png, report.png. The provider is the embedded one as a server, with a latency
and a limit, under the name of a paid one: so there are prices, and nothing is paid.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / ".github" / "pictures"
COLUMNS = 84
"""Of the terminal: a little more than the 80 that all commands keep to."""
ROWMILL = (sys.executable, "-P", "-c", "from pipelines.cli import main; main()")
JOB = """
name: reviews
source: {csv: data/reviews.csv, key: id}
steps:
  - name: label
    endpoint: chat
    provider: openai
    model: gpt-4o-mini
    messages:
      - system: You tell what a review praises or misses.
      - user: "{{ text }}"
    params: {max_tokens: 60}
    output:
      sentiment: {type: string, enum: [positive, negative]}
      about: {type: string}
  - name: vector
    endpoint: embeddings
    provider: openai
    model: text-embedding-3-small
    input: "{{ text }}"
    dimensions: 256
    when: sentiment = 'negative'
sink: {parquet: out/reviews, columns: [text, label]}
limits: {concurrency: 64}
budget: {usd: 2.00}
"""
STYLE = """
body{margin:0;padding:14px;background:transparent;width:max-content}
figure{margin:0;border-radius:10px;overflow:hidden;background:#0d1117;box-shadow:0 2px 12px #0006}
figcaption{padding:9px 16px;background:#161b22;color:#9da7b3;font:13px system-ui,sans-serif}
pre{margin:0;padding:14px 18px 18px;color:#e6edf3;font:14px/20px "DejaVu Sans Mono",monospace}
b{color:#58a6ff;font-weight:400}
"""


def main() -> None:
    """Make all three."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "jobs" / "data", folder / "data")
        (folder / "jobs").mkdir()
        (folder / "jobs" / "reviews.yaml").write_text(JOB)
        server = subprocess.Popen(
            [*ROWMILL, "serve", "--port", "8485", "--latency-ms", "120"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            while "8485" not in server.stdout.readline():
                assert server.poll() is None, "port 8485 is taken"
            limits = "limits: {requests_per_minute: 10000}"
            (folder / "rowmill.yaml").write_text(
                f"providers: {{openai: {{base_url: 'http://127.0.0.1:8485/v1', {limits}}}}}\n"
            )
            plan = ran(folder, "plan", "jobs/reviews.yaml")
            terminal(folder, "plan: before anything is sent", [("plan jobs/reviews.yaml", plan)], "plan.png")
            run = ran(folder, "run", "jobs/reviews.yaml")
            usage = ran(folder, "usage", "--by", "model")
            told = [("run jobs/reviews.yaml", progress_of(run)), ("usage --by model", usage)]
            terminal(folder, "run: one line while it goes on, the rest when it has ended", told, "progress.png")
            ran(folder, "report", "jobs/reviews.yaml")
        finally:
            server.terminate()
            server.wait()
        page = (folder / "reviews-report.html").read_text()
        # From the figures to where the time went; the rest of the page is long.
        shown = page.replace("</style>", "section:nth-of-type(n+5),.chart+.chart{display:none}</style>", 1)
        (folder / "shown.html").write_text(shown)
        taken(folder, folder / "shown.html", 1100, 2200, PICTURES / "report.png", scale=1)


def ran(folder: Path, *words: str) -> str:
    """All that a command writes to a terminal of COLUMNS columns; it has to end well."""
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [*ROWMILL, *words], cwd=folder, stdin=writing, stdout=writing, stderr=writing,
        env={**os.environ, "COLUMNS": str(COLUMNS), "LINES": "50"},
    )  # fmt: skip
    os.close(writing)
    seen = b""
    try:
        while more := os.read(reading, 1 << 16):
            seen += more
    except OSError:
        # So Linux tells that nobody writes to it any more.
        pass
    os.close(reading)
    assert process.wait() == 0, seen.decode()
    return seen.decode().replace("\r\n", "\n")


def progress_of(seen: str) -> str:
    """One of the lines that were written over one another, from the middle of the run, and what came after them."""
    lines = re.split(r"\r|\x1b\[K", seen)
    live = [line for line in lines if " left" in line]
    return f"{live[len(live) // 2]}\n\n{lines[-1].strip()}"


def terminal(folder: Path, title: str, told: list[tuple[str, str]], name: str) -> None:
    """Commands and what they wrote, as in a terminal."""
    text = "\n\n".join(f"<b>$ rowmill {escape(command)}</b>\n{escape(words.rstrip())}" for command, words in told)
    text = text.replace(str(folder) + "/", "")
    page = folder / f"{name}.html"
    page.write_text(
        f'<meta charset="utf-8"><style>{STYLE}pre{{width:{COLUMNS}ch}}</style>'
        f"<figure><figcaption>{escape(title)}</figcaption><pre>{text}</pre></figure>"
    )
    taken(folder, page, 1200, 1600, PICTURES / name, scale=2)


def taken(folder: Path, page: Path, width: int, height: int, out: Path, scale: int) -> None:
    """A page as a picture, cut to what it shows."""
    raw = folder / "raw.png"
    subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={folder / 'profile'}", f"--force-device-scale-factor={scale}",
            "--default-background-color=00000000", f"--window-size={width},{height}", f"--screenshot={raw}",
            page.as_uri(),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    with Image.open(raw) as picture:
        whole = picture.convert("RGBA")
        paper = Image.new("RGBA", whole.size, "white")
        paper.alpha_composite(whole)
        flat = paper.convert("RGB")
        # White where nothing is: what is left is shown, with a margin.
        shown = Image.eval(flat.convert("L"), lambda value: 255 - value).getbbox()
        assert shown is not None and shown[3] < whole.height, f"{out.name}: the page is longer than its picture"
        right, bottom = min(whole.width, shown[2] + 12), min(whole.height, shown[3] + 12)
        cut = flat.crop((0, 0, right, bottom))
        # A terminal has few colours.
        (cut if scale == 1 else cut.quantize(256)).save(out, optimize=True)
    print(f"{out.relative_to(ROOT)}: {right} × {bottom}, {out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
