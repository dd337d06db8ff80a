/** Formats that a job can be submitted with, and their aspect ratios. */

/** @typedef {import('../progress-hub.js').Job} Job */

/** By `platform` of the request; `ratio` is width divided by height. @type {Record<string, { name: string, ratio: number }>} */
export const PLATFORMS = {
  tiktok: { name: 'TikTok', ratio: 9 / 16 },
  youtube: { name: 'YouTube', ratio: 16 / 9 },
  instagram: { name: 'Instagram', ratio: 1 },
};

/** @param {Job} job */
export function platformOf(job) {
  return PLATFORMS[String(job.metadata?.platform)] ?? null;
}

/** Returns width divided by height as requested, or null if the metadata names neither a platform nor an aspect ratio. @param {Job} job */
export function requestedRatio(job) {
  const match = /^(\d+):(\d+)$/.exec(String(job.metadata?.aspect_ratio));
  return platformOf(job)?.ratio ?? (match ? Number(match[1]) / Number(match[2]) : null);
}
