"""Measures a page in a browser: texts that overlap, leave their plot or the page, or are hard to read."""

from __future__ import annotations

from pathlib import Path

from tests.browser import Browser

# What is measured of each text that is visible: its boxes, line by line, its colour and what is behind it.
_SCRIPT = """
(() => {
  const faults = [], texts = [];
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth + 1)
    faults.push(`the page is ${page.scrollWidth} wide, and ${page.clientWidth} are seen`);
  const colour = text => { const c = text.match(/[\\d.]+/g).map(Number); return c.length < 4 ? [...c, 1] : c; };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c[3] > 0 && !(e instanceof SVGElement)) layers.push(c);
      if (c[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = rgb => rgb.map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walk.nextNode();) {
    const element = node.parentElement, style = getComputedStyle(element), said = node.data.trim().slice(0, 40);
    if (!said || element.closest('title, desc') || !element.checkVisibility({checkVisibilityCSS: true})) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const boxes = [...range.getClientRects()].filter(box => box.width > 1 && box.height > 1);
    if (!boxes.length) continue;
    const svg = element.closest('svg'), scrolls = element.closest('.wide-table');
    const frame = (svg || scrolls || document.body).getBoundingClientRect();
    for (const box of boxes) {
      const leaves = box.left < frame.left - 1 || (box.right > frame.right + 1 && !scrolls)
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
      if (leaves) faults.push(`"${said}" leaves its ${svg ? 'plot' : scrolls ? 'table' : 'page'}`);
      texts.push({said, box, node});
    }
    let opacity = 1;
    for (let e = element; e; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
    const below = behind(element), own = colour(svg ? style.fill : style.color);
    const shown = over([...own.slice(0, 3), own[3] * opacity], below);
    const [less, more] = [light(shown), light(below)].sort((a, b) => a - b);
    const contrast = (more + .05) / (less + .05);
    if (contrast < 4.5) faults.push(`"${said}" has a contrast of ${contrast.toFixed(2)}`);
    if (parseFloat(style.fontSize) * (svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1) < 10)
      faults.push(`"${said}" is smaller than 10 pixels`);
  }
  texts.sort((a, b) => a.box.top - b.box.top);
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length && texts[j].box.top < texts[i].box.bottom; j++) {
      const a = texts[i].box, b = texts[j].box;
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // Boxes of lines are as high as the line, and letters are not.
      if (texts[i].node !== texts[j].node && wide > 1 && tall > .3 * Math.min(a.height, b.height))
        faults.push(`"${texts[i].said}" and "${texts[j].said}" overlap`);
    }
  return {faults, texts: texts.length};
})()
"""
_OPEN = "document.querySelectorAll('details').forEach(each => each.open = true)"
WIDTHS = (1200, 800, 390)


def faults_of(browser: Browser, page: Path, width: int, *, dark: bool = False, printed: bool = False) -> list[str]:
    """Returns what is wrong with a page at a width, with all that opens open; at least one text is measured."""
    browser.show(page, width, dark=dark, printed=printed)
    browser.run(_OPEN)
    found = browser.run(_SCRIPT)
    assert found["texts"] > 3, f"{page} shows no text"
    return list(found["faults"])


def all_faults(browser: Browser, page: Path) -> list[str]:
    """Returns what is wrong with a page at any width, in either scheme, and in print."""
    found = [f"{width}: {fault}" for width in WIDTHS for fault in faults_of(browser, page, width)]
    found += [f"dark: {fault}" for fault in faults_of(browser, page, WIDTHS[0], dark=True)]
    return found + [f"print: {fault}" for fault in faults_of(browser, page, 718, printed=True)]
