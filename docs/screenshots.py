"""Look at the built site as a reader does: every page in full, at two widths, light and dark.

    sphinx-build docs site && python docs/screenshots.py site /tmp/screenshots

Needs the command `chromium` and Pillow. Prints pages that are wider than the window, and pictures
that did not load. Not part of continuous integration: somebody has to look.
"""

import argparse
import functools
import http.server
import subprocess
import tempfile
import threading
from pathlib import Path

from PIL import Image

WIDTHS = (1280, 400)
SCHEMES = {"light": 1, "dark": 0}  # Blink's preferredColorScheme
MAX_HEIGHT = 16000  # of a surface in Chromium; longer pages are taken in parts
OUTSIDE = (255, 0, 255)

# Chromium's own windows have a least width and a fixed height; a frame inside has neither.
FRAME = """<!doctype html><body style="margin:0; background:rgb(255,0,255)">
<iframe src="%s" style="border:0; display:block; width:%dpx; height:900px;
    margin-top:-%dpx"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
    const page = frame.contentDocument;
    const root = page.documentElement;
    frame.style.height = root.scrollHeight + "px";
    if (root.scrollWidth > frame.clientWidth) console.log("FAULT: wider than the window");
    for (const image of page.images)
        if (!image.naturalWidth) console.log("FAULT: not loaded: " + image.src);
};
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """The site, and under /frame/WIDTH/TOP/PAGE a page from TOP on in a frame of that width."""

    def do_GET(self) -> None:
        if not self.path.startswith("/frame/"):
            super().do_GET()
            return
        width, top, page = self.path.removeprefix("/frame/").split("/", 2)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write((FRAME % (f"/{page}", int(width), int(top))).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", type=Path, help="what sphinx-build wrote")
    parser.add_argument("out", type=Path, help="folder for the screenshots")
    parser.add_argument("--pages", nargs="+", metavar="NAME", help="default: all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pages = options.pages or sorted(page.stem for page in options.site.glob("*.html"))
    handler = functools.partial(Handler, directory=str(options.site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for page in pages:
            for width in WIDTHS:
                for scheme, value in SCHEMES.items():
                    complete, part = False, 0
                    while not complete:
                        name = f"{page}-{width}-{scheme}" + (f"-{part}" if part else "")
                        frame = f"frame/{width}/{part * MAX_HEIGHT}/{page}.html"
                        url = f"http://127.0.0.1:{server.server_port}/{frame}"
                        path = options.out / f"{name}.png"
                        complete, faults = take(url, width, value, path)
                        print(path, *faults, sep="\n    ", flush=True)
                        part += 1
        server.shutdown()


def take(url: str, width: int, scheme: int, path: Path) -> tuple[bool, list[str]]:
    """Write a screenshot; returns whether the page ends in it, and the faults that it found."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--enable-logging=stderr", "--virtual-time-budget=8000",
            f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={max(width, 600)},{MAX_HEIGHT}", f"--screenshot={path.resolve()}", url,
        ]  # fmt: skip
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    picture = Image.open(path).convert("RGB").crop((0, 0, width, MAX_HEIGHT))
    column = [picture.getpixel((width // 2, row)) for row in range(picture.height)]
    height = column.index(OUTSIDE) if OUTSIDE in column else picture.height
    picture.crop((0, 0, width, height)).save(path)
    return OUTSIDE in column, [line for line in log.splitlines() if "FAULT" in line]


if __name__ == "__main__":
    main()
