/** The chart of one job: progress over time, each version a dot shaped and coloured by who told it. */

import { svg } from './dom.js';
import { percent, span } from './format.js';
import { SOURCES, shape } from './update-sources.js';
import { changeOf } from './timeline.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('./timeline.js').Seen} Seen */

export class Chart {
  #root;
  #onMark;
  /** @type {Map<number, Element>} */ #points = new Map();
  #resize;
  /** @type {[Job, readonly Seen[], number] | null} */ #last = null;
  #width = 0;

  /** @param {HTMLElement} root @param {(version: number) => void} onMark */
  constructor(root, onMark) {
    this.#root = root;
    this.#onMark = onMark;
    this.#resize = new ResizeObserver(() => {
      const width = root.clientWidth;
      if (width === this.#width) return;
      this.#width = width;
      if (this.#last) this.draw(...this.#last);
    });
    this.#resize.observe(root);
  }

  end() {
    this.#resize.disconnect();
  }

  /** @param {number} version */
  mark(version) {
    for (const [of, point] of this.#points) point.classList.toggle('on', of === version);
  }

  /** @param {Job} job @param {readonly Seen[]} seen @param {number} now */
  draw(job, seen, now) {
    this.#last = [job, seen, now];
    const width = this.#width || this.#root.clientWidth;
    const height = this.#root.clientHeight;
    if (!width || !height || !seen.length) return;
    this.#width = width;
    const start = Date.parse(job.created_at);
    const end = Math.max(job.final ? seen[seen.length - 1].at : now, seen[seen.length - 1].at, start + 1_000);
    const box = { left: 44, right: width - 12, top: 12, bottom: height - 46 };
    const x = (/** @type {number} */ at) => box.left + ((at - start) / (end - start)) * (box.right - box.left);
    const y = (/** @type {number} */ value) => box.bottom - (value / 100) * (box.bottom - box.top);
    const root = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': summaryOf(job, seen) });

    for (const value of [0, 50, 100]) {
      root.append(svg('line', { class: 'grid', x1: box.left, x2: box.right, y1: y(value), y2: y(value) }), svg('text', { x: box.left - 10, y: y(value) + 4, 'text-anchor': 'end' }, `${value} %`));
    }
    const step = niceStep((end - start) / 1000, Math.max(2, (box.right - box.left) / 80));
    for (let s = 0; s * 1000 <= end - start; s += step) {
      root.append(svg('text', { x: x(start + s * 1000), y: height - 2, 'text-anchor': s ? 'middle' : 'start' }, s < 120 ? `${s} s` : `${Math.round(s / 6) / 10} min`));
    }
    this.#bands(root, seen, end, x, box.bottom + 8);

    // Where no progress is told, a dot stays at the height of the last one that was.
    let level = 0;
    const dots = seen.map(one => {
      const told = one.p !== undefined || one.s === 'succeeded';
      level = one.p ?? (one.s === 'succeeded' ? 100 : one.s === 'accepted' ? 0 : level);
      return { one, told, x: x(one.at), y: y(level) };
    });
    let path = `M${dots[0].x},${dots[0].y}`;
    for (const dot of dots.slice(1)) path += `H${dot.x}V${dot.y}`;
    if (!job.final) path += `H${x(end)}`;
    root.append(svg('path', { class: 'area', d: `${path}V${box.bottom}H${dots[0].x}Z` }), svg('path', { class: 'path', d: path }));

    this.#points.clear();
    for (const { one, told, x: cx, y: cy } of dots) {
      const point = svg('g', { 'data-source': one.by }, svg('title', {}, `Version ${one.v}, after ${span(one.at - start)}: ${changeOf(one, null)}, by ${one.by}`),
        svg('circle', { class: 'hit', cx, cy, r: 12 }), svg('path', { class: `point${told ? '' : ' untold'}`, d: shape(one.by, cx, cy) }));
      point.addEventListener('pointerenter', () => this.#onMark(one.v));
      point.addEventListener('pointerleave', () => this.#onMark(0));
      this.#points.set(one.v, point);
      root.append(point);
    }
    this.#root.replaceChildren(root);
  }

  /** Which status it was in, below the axis. @param {Element} root @param {readonly Seen[]} seen @param {number} end @param {(at: number) => number} x @param {number} top */
  #bands(root, seen, end, x, top) {
    for (let at = 0; at < seen.length; ) {
      let next = at + 1;
      while (next < seen.length && seen[next].s === seen[at].s) next++;
      const from = x(seen[at].at);
      const to = next < seen.length ? x(seen[next].at) : x(end);
      if (to - from >= 2) {
        root.append(svg('rect', { class: 'band', x: from + 1, y: top, width: to - from - 2, height: 16, rx: 4 }));
        if (to - from > seen[at].s.length * 7 + 8) root.append(svg('text', { class: 'band-name', x: from + 7, y: top + 12 }, seen[at].s));
      }
      at = next;
    }
  }
}

/** @param {Job} job @param {readonly Seen[]} seen */
function summaryOf(job, seen) {
  const by = SOURCES.flatMap(source => {
    const count = seen.filter(one => one.by === source).length;
    return count ? [`${count} by ${source}`] : [];
  });
  return `Progress over time, now ${job.status}${job.progress === null ? '' : ` at ${percent(job.progress)}`}. ${seen.length} versions: ${by.join(', ')}.`;
}

/** @param {number} total seconds @param {number} ticks at most */
function niceStep(total, ticks) {
  for (const step of [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 43_200]) if (total / step <= ticks) return step;
  return 86_400;
}
