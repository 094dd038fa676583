export interface BlockPoolOptions {
  readonly blocks: number;
  readonly blockSize: number;
  readonly copy?: (from: number, to: number) => void;
}
export interface CachedSequence {
  readonly table: readonly number[];
  readonly length: number;
}
export class BlockPool {
  readonly blocks: number;
  readonly blockSize: number;
  constructor(readonly options: BlockPoolOptions) {
    this.blocks = options.blocks;
    this.blockSize = options.blockSize;
  }
  sequence(_tokens?: ArrayLike<number>): CachedSequence {
    throw new Error('later');
  }
}
