/** The formats that a job can be ordered in, and the frame that follows. */

/** @typedef {import('../progress-hub.js').Job} Job */

/** @type {Record<string, { name: string, ratio: number }>} */
export const PLATFORMS = {
  tiktok: { name: 'TikTok', ratio: 9 / 16 },
  youtube: { name: 'YouTube', ratio: 16 / 9 },
  instagram: { name: 'Instagram', ratio: 1 },
};

/** @param {Job} job */
export function platformOf(job) {
  return PLATFORMS[String(job.metadata?.platform)] ?? null;
}

/** Width by height, as ordered; null where the order named none. @param {Job} job */
export function orderedRatio(job) {
  const found = /^(\d+):(\d+)$/.exec(String(job.metadata?.aspect_ratio));
  return platformOf(job)?.ratio ?? (found ? Number(found[1]) / Number(found[2]) : null);
}
