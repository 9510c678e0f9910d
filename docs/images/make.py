"""Pictures of both pages for the documentation: `python docs/images/make.py ARTIFACT SWEEP.json`.

ARTIFACT is an artifact, whose report is shown; SWEEP.json is what `leptonc sweep --keep` wrote. Needs Chromium.
"""

from __future__ import annotations

import argparse
import base64
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from leptonc.pages.artifact import report_page  # noqa: E402
from leptonc.pages.sweep import sweep_page  # noqa: E402
from leptonc.report import read_report  # noqa: E402
from leptonc.sweep import row  # noqa: E402
from runtime_edge.manifest import decode  # noqa: E402
from tests.browser import Browser, browser, found  # noqa: E402

HERE = Path(__file__).parent
SHOTS = ((1200, False, 2200), (800, False, 2000), (390, True, 2400))  # width, whether it is dark, most of the height
COLOURS = 48
# Reads a picture's colours, four bytes a pixel.
_PIXELS = """(async () => {
  const bytes = Uint8Array.from(atob("%s"), c => c.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], {type: "image/png"}));
  const canvas = new OffscreenCanvas(picture.width, picture.height), draw = canvas.getContext("2d");
  draw.drawImage(picture, 0, 0);
  const all = draw.getImageData(0, 0, picture.width, picture.height).data, parts = [];
  for (let i = 0; i < all.length; i += 3e4) parts.push(btoa(String.fromCharCode(...all.subarray(i, i + 3e4))));
  return [picture.width, parts.join(" ")];
})()"""


def with_few_colours(page: Browser, picture: bytes) -> bytes:
    """Returns a PNG with the colours that occur most; each pixel has the nearest of them."""
    page.call("Page.navigate", url="about:blank")
    script = _PIXELS % base64.b64encode(picture).decode()
    answer = page.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    width, parts = answer["result"]["value"]
    pixels = np.frombuffer(b"".join(map(base64.b64decode, parts.split())), np.uint8).reshape(-1, width, 4)
    packed = pixels[..., :3].astype(np.int64) @ (1 << np.array([16, 8, 0]))
    colours, index, count = np.unique(packed, return_inverse=True, return_counts=True)
    rgb = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1)
    kept = rgb[np.argsort(-count, kind="stable")[:COLOURS]]
    nearest = np.abs(rgb[:, None] - kept[None]).sum(2).argmin(1).astype(np.uint8)
    rows = nearest[index.reshape(packed.shape)]
    lines = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], 1)  # no line is filtered

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, len(rows), 8, 3, 0, 0, 0)
    palette = kept.astype(np.uint8).tobytes()
    body = zlib.compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"PLTE", palette), chunk(b"IDAT", body), chunk(b"IEND", b""))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    program = found()
    if program is None:
        raise SystemExit("expected Chromium, found none; LEPTON_CHROMIUM names one that is elsewhere")
    told = json.loads(args.sweep.read_text())
    manifest = decode((args.artifact / "manifest.json").read_bytes())
    report = read_report(args.artifact / "report.json")
    pages = {
        "report": report_page(manifest, report),
        "sweep": sweep_page(told["source"], told["target"], told["points"], row),
    }
    with browser(program) as page:
        for name, content in pages.items():
            place = args.out / f".{name}.html"
            place.write_bytes(content)
            for width, dark, most in SHOTS:
                page.show(place, width, dark=dark)
                picture = args.out / f"{name}-{width}.png"
                high = int(page.run("document.documentElement.scrollHeight"))
                picture.write_bytes(with_few_colours(page, page.picture(min(high, most))))
                print(f"{picture}: {picture.stat().st_size:,} bytes")
            place.unlink()


if __name__ == "__main__":
    main()
