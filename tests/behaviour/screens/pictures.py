"""Pictures for the README from real runs: python tests/behaviour/screens/pictures.py (chromium and playwright).

It writes plan.png, progress.png, watch.png and report.png to .github/pictures. The provider is the embedded one as a
server, with a latency and a limit, under the name of a paid one: there are prices, and nothing is paid.
"""

import io
import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / ".github" / "pictures"
COLUMNS = 84
"""Of the terminal."""
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
      - system: Summarize what the review praises or criticizes.
      - user: "{{ text }}"
    params: {max_tokens: 60}
    output:
      sentiment: {type: string, enum: [positive, negative]}
      about: {type: string}
      stars: {type: integer, minimum: 1, maximum: 5}
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
THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207),
     (177, 186, 196)],
    [(110, 118, 129), (255, 161, 152), (86, 211, 100), (227, 179, 65), (121, 192, 255), (210, 168, 255), (86, 212, 221),
     (240, 246, 252)],
)  # fmt: skip
ERASE_LINE = "\x1b[2K"


def main() -> None:
    """Make all four."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        make_watch_picture(Path(name) / "product-reviews")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "jobs" / "data", folder / "data")
        (folder / "jobs").mkdir()
        (folder / "jobs" / "reviews.yaml").write_text(JOB)
        server = start_command(folder, "serve", "--port", "8485", "--latency-ms", "120")
        try:
            wait_for(server, "8485")
            limits = "limits: {requests_per_minute: 10000}"
            (folder / "rowmill.yaml").write_text(
                f"providers: {{openai: {{base_url: 'http://127.0.0.1:8485/v1', {limits}}}}}\n"
            )
            plan = run_command(folder, "plan", "jobs/reviews.yaml")
            draw_terminal(folder, "plan: before anything is sent", [("plan jobs/reviews.yaml", plan)], "plan.png")
            run = run_command(folder, "run", "jobs/reviews.yaml")
            usage = run_command(folder, "usage", "--by", "model")
            commands = [("run jobs/reviews.yaml", frame_and_summary(run)), ("usage --by model", usage)]
            draw_terminal(folder, "run: the progress bar, and the summary that replaces it", commands, "progress.png")
            run_command(folder, "report", "jobs/reviews.yaml")
        finally:
            server.terminate()
            server.wait()
        # The first screen and the answers; the rest of the page is long.
        page, _, _ = (folder / "reviews-report.html").read_text().partition('<section id="failed-rows"')
        (folder / "shown.html").write_text(f"{page}</main></body></html>")
        take_picture(folder, (folder / "shown.html").as_uri(), 1200, 2400, PICTURES / "report.png", scale=1)


def make_watch_picture(folder: Path) -> None:
    """Make the picture of the live page in the middle of a run, with a provider that sometimes fails."""
    shutil.copytree(ROOT / "jobs" / "data", folder / "data")
    (folder / "jobs").mkdir()
    # With one step, rows are done from the beginning.
    first_step, _, rest = JOB.partition("  - name: vector")
    (folder / "jobs" / "reviews.yaml").write_text(first_step + rest[rest.index("sink:") :])
    limits = "limits: {requests_per_minute: 9000}"
    (folder / "rowmill.yaml").write_text(
        f"providers: {{openai: {{base_url: 'http://127.0.0.1:8486/v1', {limits}}}}}\ntime_zone: Europe/Berlin\n"
    )
    server = start_command(folder, "serve", "--port", "8486", "--latency-ms", "180", "--fault", "500=0.06")
    wait_for(server, "8486")
    watch = start_command(folder, "watch", "--port", "0")
    address = wait_for(watch, "token=").rpartition(" ")[2]
    run = start_command(folder, "run", "jobs/reviews.yaml", "--quiet")
    try:
        status = folder / ".rowmill" / "running" / "reviews.json"
        while not status.exists() or json.loads(status.read_text())["requests"] < 1800:
            assert run.poll() is None, "the run has ended"
            time.sleep(0.2)
        page = address.replace("/?token=", "/jobs/reviews?token=")
        is_live = "#connection[data-state=live]"
        take_picture(folder, page, 1280, 1010, PICTURES / "watch.png", scale=1, is_whole=False, shown=is_live)
    finally:
        for process in (run, watch, server):
            process.terminate()
            process.communicate()


def start_command(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start a command whose output can be read."""
    return subprocess.Popen([*ROWMILL, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process: "subprocess.Popen[str]", words: str) -> str:
    """Return the first line of a command with these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line.strip()
    raise AssertionError(f"the command ended without {words}: is its port in use?")


def run_command(folder: Path, *words: str) -> str:
    """Return all that a command writes to a terminal of COLUMNS columns; it has to succeed."""
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [*ROWMILL, *words], cwd=folder, stdin=writing, stdout=writing, stderr=writing,
        env={**os.environ, "COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(writing)
    output = b""
    try:
        while more := os.read(reading, 1 << 16):
            output += more
    except OSError:
        # On Linux this is the end of the file.
        pass
    os.close(reading)
    assert process.wait() == 0, output.decode()
    return output.decode().replace("\r\n", "\n")


def frame_and_summary(output: str) -> str:
    """Return a progress bar from the middle of the run, and what was printed at the end."""
    *frames, summary = (part.strip("\r\n") for part in output.split(ERASE_LINE))
    bars = [frame for frame in frames if " left" in frame]
    return f"{bars[len(bars) // 2]}\n\n{summary}"


def draw_terminal(folder: Path, title: str, commands: list[tuple[str, str]], name: str) -> None:
    """Make a picture of a terminal with commands and their output."""
    parts = [f"<b>$ rowmill {escape(command)}</b>\n{html_of(output.rstrip())}" for command, output in commands]
    text = "\n\n".join(parts).replace(str(folder) + "/", "")
    page = folder / f"{name}.html"
    page.write_text(
        f'<meta charset="utf-8"><style>{STYLE}pre{{width:{COLUMNS}ch}}</style>'
        f"<figure><figcaption>{escape(title)}</figcaption><pre>{text}</pre></figure>"
    )
    take_picture(folder, page.as_uri(), 1200, 1600, PICTURES / name, scale=2)


def html_of(output: str) -> str:
    """Return terminal output as HTML in the colours of THEME."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False, markup=False)
    console.print(Text.from_ansi(output), soft_wrap=True)
    html = console.export_html(theme=THEME, inline_styles=True, code_format="{code}")
    return html.rstrip()


def take_picture(
    folder: Path, page: str, width: int, height: int, out: Path, scale: int, is_whole: bool = True, shown: str = "body"
) -> None:
    """Make a picture of the page at an address, cropped to its content; unless `is_whole` its end may be cut off.

    `shown`: a selector of what has to be there first. Chromium's own `--screenshot` waits for no more than the files of
    the page: a live page is not connected by then.
    """
    raw = folder / "raw.png"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        tab = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        tab.goto(page)
        tab.wait_for_selector(shown)
        tab.screenshot(path=raw, omit_background=True)
        browser.close()
    with Image.open(raw) as picture:
        whole = picture.convert("RGBA")
        paper = Image.new("RGBA", whole.size, "white")
        paper.alpha_composite(whole)
        flat = paper.convert("RGB")
        # White is empty: the rest is shown, with a margin.
        drawn = Image.eval(flat.convert("L"), lambda value: 255 - value).getbbox()
        assert drawn is not None
        assert drawn[3] < whole.height or not is_whole, f"{out.name}: the page is longer than its picture"
        right, bottom = min(whole.width, drawn[2] + 12), min(whole.height, drawn[3] + 12)
        cut = flat.crop((0, 0, right, bottom))
        # A terminal has few colours.
        (cut if scale == 1 else cut.quantize(256)).save(out, optimize=True)
    print(f"{out.relative_to(ROOT)}: {right} × {bottom}, {out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
