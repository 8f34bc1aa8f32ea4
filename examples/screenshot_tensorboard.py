"""Save a page of TensorBoard as a picture, with headless Chromium.

Usage: python examples/screenshot_tensorboard.py --logdir runs/demo --page plain --output docs/pictures/tensorboard.png

Needs Chromium on the PATH (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from rl_lightning.cli.board import pinned


def free_port() -> int:
    """Return the number of a free TCP port."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def wait_for(url: str, seconds: float = 60) -> None:
    """Wait until an address answers HTTP requests."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"TensorBoard did not answer at {url} within {seconds:.0f} s")


def main() -> None:
    """Start TensorBoard, save the picture, and stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logdir", default="runs")
    parser.add_argument(
        "--page",
        default="plain",
        help="plain (as `tensorboard --logdir` opens), pinned (as `rl-lightning tensorboard` does), custom_scalars, hparams, "
        "histograms, text",
    )
    parser.add_argument("--size", default="1300,760", help="width,height of the window in pixels")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("there is no Chromium on the PATH")
    port = free_port()
    page = {"plain": "", "pinned": pinned()}.get(arguments.page, f"#{arguments.page}")
    board = [sys.executable, "-m", "tensorboard.main", "--logdir", arguments.logdir, "--port", str(port)]
    with subprocess.Popen(board, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(f"http://localhost:{port}/")
            time.sleep(5)  # TensorBoard answers before it has read the runs
            subprocess.run(
                [
                    browser,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    # Lines are then part of the page; on a canvas that a thread of its own paints, they may come too late for the picture.
                    "--disable-3d-apis",
                    f"--window-size={arguments.size}",
                    "--virtual-time-budget=40000",
                    f"--screenshot={arguments.output}",
                    f"http://localhost:{port}/{page}",
                ],
                check=True,
                stderr=subprocess.DEVNULL,
            )
        finally:
            server.terminate()
    print(f"saved {arguments.output}")


if __name__ == "__main__":
    main()
