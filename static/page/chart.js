/** Progress of one job over time. Each version is a point whose shape and color show its source. */

import { svg } from './dom.js';
import { percent, span } from './format.js';
import { changeText } from './timeline.js';
import { SOURCES, sourceShape } from './update-sources.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('./timeline.js').VersionRecord} VersionRecord */

export class Chart {
  #root;
  #onHighlight;
  /** By version. @type {Map<number, Element>} */ #points = new Map();
  #resizeObserver;
  /** Arguments of the last `draw`. @type {[Job, readonly VersionRecord[], number] | null} */ #drawn = null;
  #width = 0;

  /** @param {HTMLElement} root @param {(version: number) => void} onHighlight receives 0 when no version is highlighted */
  constructor(root, onHighlight) {
    this.#root = root;
    this.#onHighlight = onHighlight;
    this.#resizeObserver = new ResizeObserver(() => {
      const width = root.clientWidth;
      if (width === this.#width) return;
      this.#width = width;
      if (this.#drawn) this.draw(...this.#drawn);
    });
    this.#resizeObserver.observe(root);
  }

  disconnect() {
    this.#resizeObserver.disconnect();
  }

  /** @param {number} version */
  highlight(version) {
    for (const [pointVersion, point] of this.#points) point.classList.toggle('highlighted', pointVersion === version);
  }

  /** @param {Job} job @param {readonly VersionRecord[]} records @param {number} now */
  draw(job, records, now) {
    this.#drawn = [job, records, now];
    const width = this.#width || this.#root.clientWidth;
    const height = this.#root.clientHeight;
    if (!width || !height || !records.length) return;
    this.#width = width;
    const start = Date.parse(job.created_at);
    const lastAt = records[records.length - 1].at;
    const end = Math.max(job.final ? lastAt : now, lastAt, start + 1_000);
    const box = { left: 44, right: width - 12, top: 12, bottom: height - 46 };
    const x = (/** @type {number} */ time) => box.left + ((time - start) / (end - start)) * (box.right - box.left);
    const y = (/** @type {number} */ progress) => box.bottom - (progress / 100) * (box.bottom - box.top);
    const root = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': chartSummary(job, records) });

    for (const progress of [0, 50, 100]) {
      root.append(svg('line', { class: 'grid', x1: box.left, x2: box.right, y1: y(progress), y2: y(progress) }),
        svg('text', { x: box.left - 10, y: y(progress) + 4, 'text-anchor': 'end' }, percent(progress)));
    }
    const step = tickSeconds((end - start) / 1000, Math.max(2, (box.right - box.left) / 80));
    for (let seconds = 0; seconds * 1000 <= end - start; seconds += step) {
      const label = seconds < 120 ? `${seconds}s` : `${Math.round(seconds / 6) / 10} min`;
      root.append(svg('text', { x: x(start + seconds * 1000), y: height - 2, 'text-anchor': seconds ? 'middle' : 'start' }, label));
    }
    this.#drawStatusBands(root, records, end, x, box.bottom + 8);

    // A version without progress is drawn at the height of the last version that had it.
    let level = 0;
    const points = records.map(record => {
      const hasProgress = record.p !== undefined || record.s === 'succeeded';
      level = record.p ?? (record.s === 'succeeded' ? 100 : record.s === 'accepted' ? 0 : level);
      return { record, hasProgress, x: x(record.at), y: y(level) };
    });
    let path = `M${points[0].x},${points[0].y}`;
    for (const point of points.slice(1)) path += `H${point.x}V${point.y}`;
    if (!job.final) path += `H${x(end)}`;
    root.append(svg('path', { class: 'area', d: `${path}V${box.bottom}H${points[0].x}Z` }), svg('path', { class: 'path', d: path }));

    this.#points.clear();
    for (const { record, hasProgress, x: cx, y: cy } of points) {
      const tooltip = `Version ${record.v}, after ${span(record.at - start)}: ${changeText(record, null)}, via ${record.by}`;
      const point = svg('g', { 'data-source': record.by }, svg('title', {}, tooltip),
        svg('circle', { class: 'hit-area', cx, cy, r: 12 }), svg('path', { class: `point${hasProgress ? '' : ' no-progress'}`, d: sourceShape(record.by, cx, cy) }));
      point.addEventListener('pointerenter', () => this.#onHighlight(record.v));
      point.addEventListener('pointerleave', () => this.#onHighlight(0));
      this.#points.set(record.v, point);
      root.append(point);
    }
    this.#root.replaceChildren(root);
  }

  /**
   * Draws one band below the axis for each period in which the status did not change.
   * @param {Element} root
   * @param {readonly VersionRecord[]} records
   * @param {number} end
   * @param {(time: number) => number} x
   * @param {number} top
   */
  #drawStatusBands(root, records, end, x, top) {
    for (let index = 0; index < records.length; ) {
      const { s: status, at } = records[index];
      let next = index + 1;
      while (next < records.length && records[next].s === status) next++;
      const from = x(at);
      const to = next < records.length ? x(records[next].at) : x(end);
      if (to - from >= 2) {
        root.append(svg('rect', { class: 'band', x: from + 1, y: top, width: to - from - 2, height: 16, rx: 4 }));
        if (to - from > status.length * 7 + 8) root.append(svg('text', { class: 'band-label', x: from + 7, y: top + 12 }, status));
      }
      index = next;
    }
  }
}

/** Returns the text alternative of the chart. @param {Job} job @param {readonly VersionRecord[]} records */
function chartSummary(job, records) {
  const counts = SOURCES.flatMap(source => {
    const count = records.filter(record => record.by === source).length;
    return count ? [`${count} via ${source}`] : [];
  });
  return `Progress over time. Current status: ${job.status}${job.progress === null ? '' : ` at ${percent(job.progress)}`}. ${records.length} versions: ${counts.join(', ')}.`;
}

/** Returns the distance between time labels. @param {number} totalSeconds @param {number} maxTicks */
function tickSeconds(totalSeconds, maxTicks) {
  for (const step of [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 43_200]) if (totalSeconds / step <= maxTicks) return step;
  return 86_400;
}
