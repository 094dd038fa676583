import type { DeviceBuffer } from './memory.js';
import { addressOf, type Operand, tensorRef } from './operand.js';
import { operation } from './operation.js';
import { buffersOf, type ScanShape, type Sequences, sequencesRef } from './scan.js';
import { struct } from './struct.js';

const params = struct('WkvParams', {
  k: tensorRef,
  v: tensorRef,
  out: tensorRef,
  dOut: tensorRef,
  dK: tensorRef,
  dV: tensorRef,
  decay: 'address',
  bonus: 'address',
  initial: 'address',
  finalState: 'address',
  kept: 'address',
  dFinal: 'address',
  dInitial: 'address',
  dDecay: 'address',
  dBonus: 'address',
  ofSequences: 'address',
  batch: 'int32',
  length: 'int32',
  channels: 'int32',
  reserved: 'int32',
});

/** Parameters and states are contiguous float32. */
interface WkvInputs extends ScanShape {
  /** [batch, length, channels] */
  readonly k: Sequences;
  readonly v: Sequences;
  /** [channels] */
  readonly decay: Operand;
  readonly bonus: Operand;
}

export interface WkvOperands extends WkvInputs {
  readonly out: Sequences;
  /** [batch, 3, channels] */
  readonly initial: Operand | undefined;
  readonly finalState: Operand | undefined;
  /** float32 [batch, blocks, 3, channels]: the states that backward begins from. */
  readonly kept: Operand | undefined;
}

export interface WkvBackwardOperands extends WkvInputs {
  readonly kept: Operand;
  readonly dOut: Sequences;
  readonly dFinal: Operand | undefined;
  readonly dK: Sequences | undefined;
  readonly dV: Sequences | undefined;
  readonly dInitial: Operand | undefined;
  readonly dDecay: Operand | undefined;
  readonly dBonus: Operand | undefined;
  /** `wkvScratch` float32 elements. */
  readonly ofSequences: DeviceBuffer | undefined;
}

export const wkvScratch = ({ batch, channels }: ScanShape): number => 2 * batch * channels;

const work = 60;

export const wkv = operation('wkv', params, (operands: WkvOperands) => {
  const { k, v, decay, bonus, out, initial, finalState, kept, batch, length, channels } = operands;
  if (batch * channels === 0) return undefined;
  return {
    params: {
      k: sequencesRef(k),
      v: sequencesRef(v),
      out: sequencesRef(out),
      dOut: undefined,
      dK: undefined,
      dV: undefined,
      decay: addressOf(decay),
      bonus: addressOf(bonus),
      initial: addressOf(initial),
      finalState: addressOf(finalState),
      kept: addressOf(kept),
      dFinal: 0,
      dInitial: 0,
      dDecay: 0,
      dBonus: 0,
      ofSequences: 0,
      batch,
      length,
      channels,
    },
    reads: buffersOf(k, v, decay, bonus, initial),
    writes: buffersOf(out, finalState, kept),
    work: work * batch * length * channels,
  };
});

/** Its gradients, each where it is wanted. */
export const wkvBackward = operation('wkvBackward', params, (operands: WkvBackwardOperands) => {
  const { k, v, decay, bonus, kept, dOut, dFinal, dK, dV, dInitial, dDecay, dBonus, ofSequences } = operands;
  const { batch, length, channels } = operands;
  // Without sequences the gradients of parameters are still written: zeros.
  if (channels === 0) return undefined;
  const writes = buffersOf(dK, dV, dInitial, dDecay, dBonus);
  if (ofSequences) writes.push(ofSequences);
  return {
    params: {
      k: sequencesRef(k),
      v: sequencesRef(v),
      out: undefined,
      dOut: sequencesRef(dOut),
      dK: sequencesRef(dK),
      dV: sequencesRef(dV),
      decay: addressOf(decay),
      bonus: addressOf(bonus),
      initial: 0,
      finalState: 0,
      kept: addressOf(kept),
      dFinal: addressOf(dFinal),
      dInitial: addressOf(dInitial),
      dDecay: addressOf(dDecay),
      dBonus: addressOf(dBonus),
      ofSequences: ofSequences?.address ?? 0,
      batch,
      length,
      channels,
    },
    reads: buffersOf(k, v, decay, bonus, kept, dOut, dFinal),
    writes,
    work: 3 * work * batch * length * channels + channels,
  };
});
