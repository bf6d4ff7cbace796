// What a reader would see of each page: measured in iframes of several widths, in light and dark.
// `VIEWS` and `PAGES` are written before this file by page_measurements.py.

const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

/** Any CSS colour as [red, green, blue, alpha]. */
function parseColour(text) {
  const numbers = text.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/);
  if (numbers) return [+numbers[1], +numbers[2], +numbers[3], numbers[4] === undefined ? 1 : +numbers[4]];
  pixel.clearRect(0, 0, 1, 1);
  pixel.fillStyle = text;
  pixel.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = pixel.getImageData(0, 0, 1, 1).data;
  return [red, green, blue, alpha / 255];
}

function over(top, bottom) {
  const alpha = top[3];
  return [0, 1, 2].map((i) => top[i] * alpha + bottom[i] * (1 - alpha)).concat(1);
}

/** Relative luminance and contrast as WCAG 2 defines them. */
function luminance(colour) {
  const [red, green, blue] = colour.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

/** A name by which the element is found in the page's source. */
function describe(element) {
  const text = element.textContent.trim().replace(/\s+/g, " ").slice(0, 40);
  const name = element.id ? `#${element.id}` : element.getAttribute("class") || "";
  return `<${element.localName}${name && ` ${name}`}> ${text}`;
}

function isScrolled(style) {
  return ["auto", "scroll"].includes(style.overflowX);
}

class Measurement {
  constructor(frame) {
    this.window = frame.contentWindow;
    this.document = frame.contentDocument;
    this.root = this.document.documentElement;
    this.width = this.window.innerWidth;
    for (const details of this.document.querySelectorAll("details")) details.open = true;
    // As high as the page, so that everything in it can be hit.
    frame.style.height = `${this.root.scrollHeight}px`;
    this.elements = [...this.document.body.querySelectorAll("*")].filter((element) =>
      element.checkVisibility({ visibilityProperty: true })
    );
    this.visible = new Set(this.elements);
  }

  style(element) {
    return this.window.getComputedStyle(element);
  }

  *ancestors(element) {
    for (let at = element; at; at = at.parentElement) yield at;
  }

  /** The nearest ancestor that scrolls sideways, if it is not the page itself. */
  scroller(element) {
    return [...this.ancestors(element.parentElement)].find(
      (at) => at !== this.document.body && at !== this.root && isScrolled(this.style(at))
    );
  }

  /** The sides between which an element is seen without scrolling. */
  port(element) {
    const { left = 0, right = this.width } = this.scroller(element)?.getBoundingClientRect() ?? {};
    return { left, right };
  }

  /** Elements that reach out of the page, except inside of what scrolls; of nested ones the outermost. */
  overflowing() {
    const found = new Set(
      this.elements.filter((element) => {
        if (element.closest("svg > *")) return false;
        const box = element.getBoundingClientRect();
        return box.width && box.height && (box.right > this.width + 1 || box.left < -1) && !this.scroller(element);
      })
    );
    return [...found]
      .filter((element) => !found.has(element.parentElement))
      .map((element) => `${describe(element)} ends at ${Math.round(element.getBoundingClientRect().right)} px`);
  }

  /** Boxes whose content is cut off and cannot be scrolled to. */
  cutOff() {
    return this.elements
      .filter((element) => element.scrollWidth > element.clientWidth + 1 && element.clientWidth)
      .filter((element) => ["hidden", "clip"].includes(this.style(element).overflowX))
      .map(describe);
  }

  /** Words at the edge of a plot that lie outside of it. */
  cutOffTexts() {
    return this.elements
      .filter((element) => element.localName === "text" && element.textContent.trim())
      .filter((element) => {
        const [text, plot] = [element, element.ownerSVGElement].map((at) => at.getBoundingClientRect());
        const across = Math.max(plot.left - text.left, text.right - plot.right);
        const down = Math.max(plot.top - text.top, text.bottom - plot.bottom);
        // A line is higher than its letters.
        return text.width > text.height
          ? across > 2 || down > 0.3 * text.height
          : down > 2 || across > 0.3 * text.width;
      })
      .map(describe);
  }

  /** Tables of which a part is seen only after scrolling. */
  scrolledTables() {
    return this.elements
      .filter((element) => element.localName === "table")
      .flatMap((table) => {
        const beyond = table.getBoundingClientRect().right - this.port(table).right;
        return beyond > 1 ? [`${describe(table)} is ${Math.round(beyond)} px too wide`] : [];
      });
  }

  /** Where each place stands whose whole text is one of `verdicts`. */
  verdicts(verdicts) {
    return this.elements
      .filter((element) => !element.closest("svg, script, style") && verdicts.includes(element.textContent.trim()))
      .filter((element) => ![...element.children].some((child) => verdicts.includes(child.textContent.trim())))
      .map((element) => {
        const box = element.getBoundingClientRect();
        const port = this.port(element);
        const hidden = Math.max(0, box.right - port.right, port.left - box.left);
        return { text: element.textContent.trim(), top: box.top, hidden };
      });
  }

  canvas() {
    // `color-scheme: dark` makes the canvas dark; without it the canvas is white in every theme.
    const dark = this.isDark && this.style(this.root).colorScheme.split(" ").includes("dark");
    const base = dark ? [18, 18, 18, 1] : [255, 255, 255, 1];
    const own = parseColour(this.style(this.root).backgroundColor);
    return over(own[3] ? own : parseColour(this.style(this.document.body).backgroundColor), base);
  }

  get isDark() {
    return this.window.matchMedia("(prefers-color-scheme: dark)").matches;
  }

  /** The colour of an image inside of a plot at a point of the page. */
  imageColour(image, x, y) {
    const size = 100;
    const drawn = new OffscreenCanvas(size, size).getContext("2d");
    drawn.drawImage(image, 0, 0, size, size);
    const at = new DOMPoint(x, y).matrixTransform(image.getScreenCTM().inverse());
    const [across, down] = [["x", "width"], ["y", "height"]].map(([start, length]) =>
      Math.floor((size * (at[start] - image[start].baseVal.value)) / image[length].baseVal.value)
    );
    const [red, green, blue, alpha] = drawn.getImageData(across, down, 1, 1).data;
    return [red, green, blue, alpha / 255];
  }

  /** What is painted behind a text: the backgrounds of its ancestors and, in a plot, the shapes below it. */
  background(element, x, y) {
    const layers = [];
    if (element.closest("svg")) {
      const stack = this.document.elementsFromPoint(x, y);
      const below = stack.slice(stack.findIndex((at) => at === element || element.contains(at)) + 1);
      for (const shape of below.filter((at) => at.ownerSVGElement && at.localName !== "text")) {
        const style = this.style(shape);
        if (shape.localName === "image") {
          layers.push(this.imageColour(shape, x, y));
        } else if (style.fill !== "none" && !style.fill.startsWith("url")) {
          const [red, green, blue, alpha] = parseColour(style.fill);
          layers.push([red, green, blue, alpha * style.fillOpacity * style.opacity]);
        }
      }
    }
    for (const at of this.ancestors(element)) {
      if (at !== this.document.body && at !== this.root) layers.push(parseColour(this.style(at).backgroundColor));
    }
    return layers.reverse().reduce((colour, layer) => over(layer, colour), this.canvas());
  }

  /** Texts that are hard to read, with their contrast. */
  faintTexts(least) {
    const faint = new Map();
    const walker = this.document.createTreeWalker(this.document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || !this.visible.has(element)) continue;
      if (["script", "style", "title", "desc"].includes(element.localName)) continue;
      const range = this.document.createRange();
      range.selectNodeContents(walker.currentNode);
      const box = range.getBoundingClientRect();
      const port = this.port(element);
      if (!box.width || box.right > port.right || box.left < port.left) continue; // is judged in a wider view
      const style = this.style(element);
      const [red, green, blue, alpha] = parseColour(element.closest("svg") ? style.fill : style.color);
      const behind = this.background(element, box.left + box.width / 2, box.top + box.height / 2);
      const opacity = [...this.ancestors(element)].reduce((product, at) => product * this.style(at).opacity, alpha);
      const found = contrast(over([red, green, blue, opacity], behind), behind);
      if (found < least) faint.set(`${describe(element)} has a contrast of ${found.toFixed(1)}`, true);
    }
    return [...faint.keys()];
  }

  /** Lines and areas of plots that cannot be told from the page behind them. */
  invisibleShapes(least) {
    const canvas = this.canvas();
    const names = new Set();
    for (const shape of this.elements.filter((at) => at.matches("svg :is(path, rect, line, use, circle, polygon)"))) {
      if (shape.closest("defs, clipPath")) continue;
      const style = this.style(shape);
      const painted = [[style.stroke, style.strokeOpacity], [style.fill, style.fillOpacity]]
        .filter(([colour]) => colour !== "none" && !colour.startsWith("url"))
        .map(([colour, alpha]) => [parseColour(colour), alpha * style.opacity])
        .filter(([colour, alpha]) => colour[3] && +alpha > 0.5);
      if (painted.length && painted.every(([colour]) => contrast(over(colour, canvas), canvas) < least)) {
        names.add(`<${shape.localName}> in ${shape.closest("g[id]")?.id}: ${painted.map(([c]) => c.join(" "))}`);
      }
    }
    return [...names];
  }

  /** Images with corners of opaque white: a hole in a dark page. */
  whiteImages() {
    return this.elements
      .filter((element) => element.localName === "img" && element.naturalWidth)
      .filter((image) => {
        const { naturalWidth: width, naturalHeight: height } = image;
        const drawn = new OffscreenCanvas(width, height).getContext("2d");
        drawn.drawImage(image, 0, 0);
        return [[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]].every(([x, y]) =>
          drawn.getImageData(x, y, 1, 1).data.every((value) => value > 250)
        );
      })
      .map((image) => `<img> ${image.alt || image.src.slice(0, 60)}`);
  }
}

async function load(page, view) {
  const frame = document.createElement("iframe");
  frame.style = `border: 0; width: ${view.width}px; height: 800px; color-scheme: ${view.theme}`;
  frame.src = page.address;
  const loaded = new Promise((done) => (frame.onload = done));
  document.body.append(frame);
  await loaded;
  return frame;
}

async function measure(page, view) {
  const frame = await load(page, view);
  const seen = new Measurement(frame);
  const findings = {
    width: seen.width,
    theme: seen.isDark ? "dark" : "light",
    scroll_width: seen.root.scrollWidth,
    overflowing: seen.overflowing(),
    cut_off: [...seen.cutOff(), ...seen.cutOffTexts()],
    scrolled_tables: seen.scrolledTables(),
    verdicts: seen.verdicts(page.verdicts),
    background: luminance(seen.canvas()),
    faint_texts: seen.faintTexts(4.5),
    invisible_shapes: seen.invisibleShapes(1.25),
    white_images: seen.whiteImages(),
  };
  frame.remove();
  return findings;
}

async function main() {
  const findings = {};
  for (const [name, page] of Object.entries(PAGES)) {
    findings[name] = [];
    for (const view of VIEWS) findings[name].push(await measure(page, view));
  }
  return findings;
}

main().then(
  (findings) => (document.getElementById("findings").textContent = JSON.stringify(findings)),
  (error) => (document.getElementById("findings").textContent = JSON.stringify({ error: `${error}\n${error.stack}` }))
);
