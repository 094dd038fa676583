// Immutable objects (block masks, row maps) whose arrays devices keep copies of, and masks, of which there are compiled ones
// that are. When a cache lets go of one, the copies go
// at once: the collector, which would see to them otherwise, does not know how large they are.

const listeners: ((owner: object) => void)[] = [];

/** Calls `listener` with each object that is released from now on. */
export function onReleased(listener: (owner: object) => void): void {
  listeners.push(listener);
}

/** Frees the device copies of an object. It stays usable: they are made again when it is. */
export function release(owner: object): void {
  for (const listener of listeners) listener(owner);
}
