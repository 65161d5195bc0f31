/** Audio files, decoded by the browser. */

import { mixToMono } from "./pcm.js";
import { Problem } from "./problems.js";

/** The rate that the recogniser works at: a file is sent as small as it can be. */
export const FILE_RATE = 16000;

/**
 * Decodes a file.
 * @param {File} file Any audio (or video) that the browser plays.
 * @returns {Promise<Float32Array>} Mono samples at FILE_RATE.
 * @throws {Problem} The file is empty or cannot be read.
 */
export async function decodeFile(file) {
  let buffer;
  try {
    // A context decodes to its own rate (Web Audio API, decodeAudioData): a long file stays small.
    const context = new OfflineAudioContext({ numberOfChannels: 1, length: 1, sampleRate: FILE_RATE });
    buffer = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Problem("file_unreadable");
  }
  if (buffer.length === 0) throw new Problem("file_empty");
  return mixToMono(buffer);
}
