// What the report's test measures in the page: contrast, and what has no name for who cannot see it.
// Declared as properties: the same page is measured more than once.
globalThis.canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
globalThis.rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
// WCAG 2: relative luminance.
globalThis.luminance = (colour) => colour.slice(0, 3).map((each) => each / 255)
  .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
  .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
globalThis.luminanceOf = (selector) => luminance(rgba(getComputedStyle(document.querySelector(selector)).backgroundColor));
globalThis.behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = rgba(getComputedStyle(node).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255];
};
/** Every visible text of a contrast below 4.5, and how many were looked at. */
globalThis.contrasts = () => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [], seen = new Set();
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const passed = !walker.currentNode.data.trim() || seen.has(node) || !node.checkVisibility();
    if (passed || node.closest("script, style, svg, noscript, .hidden-text, [hidden]")) continue;
    seen.add(node);
    const [more, less] = [luminance(rgba(getComputedStyle(node).color)), luminance(behind(node))].sort((a, b) => b - a);
    const contrast = (more + 0.05) / (less + 0.05);
    if (contrast < 4.5) low.push(`${node.className || node.tagName} ${node.textContent.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return { checked: seen.size, low };
};
/** Controls without a label, pictures without a name that are not hidden, tables without one, headings without a scope. */
globalThis.nameless = () => [
  ["select, input", (each) => !each.labels.length],
  ["button", (each) => !each.textContent.trim() && !each.hidden],
  ["svg", (each) => each.getAttribute("aria-hidden") !== "true" && !each.getAttribute("aria-label")],
  ["table", (each) => !each.caption && !each.getAttribute("aria-label")],
  ["table th", (each) => !each.scope],
  ["[role=region]", (each) => !each.getAttribute("aria-label")],
].flatMap(([selector, lacks]) => [...document.querySelectorAll(selector)].filter(lacks)).map((each) => each.outerHTML.slice(0, 120));
