"""`on_finish`: sends the report of a run to a command or a webhook; a failure there is a warning."""

import asyncio
import os
import shlex
import signal
import subprocess
from urllib.parse import urlsplit

import orjson

from connectors.errors import JobError
from connectors.transport.access.certificates import tls_context
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.providers.key_command import workspace_program
from pipelines.config.workspace import Workspace
from pipelines.runtime.run_report import RunReport

COMMAND_SECONDS = 60.0
WEBHOOK_SECONDS = 30.0


def notify(loaded: LoadedJob, report: RunReport) -> str | None:
    """Send the object of `--json` to the job's `on_finish`; return a warning, or None."""
    job = loaded.job
    if job.on_finish is None:
        return None
    body = orjson.dumps(report.to_json())
    if job.on_finish.command is not None:
        problem = _command(job.on_finish.command, body, loaded.workspace)
        return problem and f"{job.name}: on_finish: {problem}; the run itself is not touched by this"
    problem = _webhook(job.on_finish.webhook or "", body)
    return problem and f"{job.name}: on_finish: {problem}; the run itself is not touched by this"


def _command(command: str, report: bytes, workspace: Workspace) -> str | None:
    """Run the command in the workspace, with the environment and its `.env` file; its output goes to stderr."""
    try:
        words = shlex.split(command)
    except ValueError as exc:
        return f"{command!r} cannot be split into words ({exc}); fix its quotes"
    if not words:
        return f"{command!r} names no command; name one"
    try:
        environment = workspace.command_environment()
    except JobError as exc:
        return str(exc)
    try:
        process = subprocess.Popen(
            workspace_program(words, workspace.folder),
            cwd=workspace.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=2,
            start_new_session=True,
        )
    except OSError as exc:
        hint = "; make it executable: chmod +x" if isinstance(exc, PermissionError) else ""
        return f"{words[0]} cannot be started ({exc.strerror}){hint}"
    try:
        process.communicate(report, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{words[0]} took longer than {COMMAND_SECONDS:g} s and was ended"
    finally:
        if process.poll() is None:
            # Kill its whole process group.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"{words[0]} ended with exit code {process.returncode}" if process.returncode else None


def _webhook(url: str, report: bytes) -> str | None:
    # Only the host: path and query of such an address are often its secret.
    host = urlsplit(url).hostname or "the webhook"
    status = asyncio.run(_posted(url, report))
    if isinstance(status, str):
        return f"{host} {status}"
    return None if 200 <= status < 300 else f"{host} answered with HTTP {status}"


async def _posted(url: str, report: bytes) -> int | str:
    """The reply's HTTP status, or why there is none."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=WEBHOOK_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.post(
                url,
                data=report,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
                ssl=tls_context(None) if url.startswith("https:") else True,
            ) as reply,
        ):
            return reply.status
    except TimeoutError:
        return f"did not answer within {WEBHOOK_SECONDS:g} s"
    except (aiohttp.ClientError, ValueError, OSError) as exc:
        return f"cannot be reached ({type(exc).__name__})"
