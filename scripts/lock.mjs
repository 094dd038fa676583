// One process at a time, by a file that names its holder.
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const pollMilliseconds = 200;
const takeoverMilliseconds = 10_000; // far more than taking over takes

/** Whether the file was made by this call; false where it is there already. */
function claim(path) {
  try {
    writeFileSync(path, String(process.pid), { flag: 'wx' });
    return true;
  } catch (error) {
    if (error.code === 'EEXIST') return false;
    throw error;
  }
}

/** The process that holds the lock; nothing where it has just been given back. */
function holderOf(path) {
  try {
    return Number(readFileSync(path, 'utf8'));
  } catch (error) {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM'; // it is there, and somebody else's
  }
}

const ageOf = (path) => Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());

/** An empty file has been made a moment ago and will name its holder at once; later, its maker died in between. */
const isLeftBehind = (path, pid) => (pid === 0 ? ageOf(path) > takeoverMilliseconds : pid > 0 && !isAlive(pid));

/** Removes a lock whose holder has died. One process does so: two would remove each other's new locks. */
function removeLeftBehind(path) {
  const takeover = `${path}.takeover`;
  if (!claim(takeover)) {
    if (ageOf(takeover) > takeoverMilliseconds) rmSync(takeover, { force: true });
    return;
  }
  try {
    const pid = holderOf(path);
    if (pid !== undefined && isLeftBehind(path, pid)) rmSync(path, { force: true });
  } finally {
    rmSync(takeover, { force: true });
  }
}

/** Runs `task` while no other process on this machine does under the same lock. */
export async function withLock(path, task, onWait = () => {}) {
  mkdirSync(dirname(path), { recursive: true });
  let told = false;
  while (!claim(path)) {
    const pid = holderOf(path);
    if (pid === undefined) continue;
    if (isLeftBehind(path, pid)) {
      removeLeftBehind(path);
      continue;
    }
    if (!told) onWait(pid);
    told = true;
    await sleep(pollMilliseconds);
  }
  const release = () => rmSync(path, { force: true });
  process.once('exit', release);
  try {
    return await task();
  } finally {
    process.off('exit', release);
    release();
  }
}
