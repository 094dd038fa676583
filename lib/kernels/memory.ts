/** Memory of a device. `address` is the device's own; host code only offsets it. */
export interface DeviceBuffer {
  readonly address: number;
  readonly byteLength: number;
  /** How many launches, replayed ones too, write it: what is known of its content holds until this changes. */
  revision: number;
}

/** What a device does with memory. */
export interface Memory {
  /** @throws ERR_OUT_OF_MEMORY. `hostWritten` memory is not in use by any pending launch. */
  allocate(byteLength: number, purpose: 'hostWritten' | 'deviceWritten'): DeviceBuffer;
  free(buffer: DeviceBuffer): void;
  /** Overwrites once pending launches that use the buffer are done; `bytes` is the caller's again on return. */
  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void;
}

/** Arrays in device memory, one behind the other; freed with the object that they are of, or when nobody retains them. */
export interface Uploaded {
  readonly buffer: DeviceBuffer;
  readonly addresses: readonly number[];
  retain(): void;
  release(): void;
}

export type HostArray = Int32Array | Uint32Array;
