// What a block mask consists of.
/** The dims of a block mask. */
export interface BlockMaskShape {
  /** 1 when all batch entries (heads) see the same. */
  readonly batch: number;
  readonly heads: number;
  readonly queries: number;
  readonly keys: number;
  /** Tokens of a block in both directions. */
  readonly blockSize: 64 | 128;
}

/**
 * Sorted lists of blocks, one list for each (batch, head, row): list r is indices[offsets[r]] to
 * indices[offsets[r + 1] - 1].
 */
export interface BlockLists {
  readonly offsets: Int32Array;
  readonly indices: Int32Array;
}

/** Which query blocks see a key block: the lists of backward. */
export interface TransposedLists {
  readonly full: BlockLists;
  readonly partial: BlockLists;
  /** Where in `bits` each entry of `partial` lies, counted in blocks. */
  readonly partialBlocks: Int32Array;
}

export interface BlockMaskStatistics {
  readonly fullBlocks: number;
  readonly partialBlocks: number;
  readonly emptyBlocks: number;
  /** Visible query-key pairs, over all batch entries and heads of the mask. */
  readonly visiblePairs: number;
  readonly totalPairs: number;
  /** visiblePairs / totalPairs. */
  readonly density: number;
  /** Blocks that kernels visit / all blocks: what the time follows. */
  readonly blockDensity: number;
  readonly byteLength: number;
}

export interface BlockMaskParts extends BlockMaskShape {
  readonly full: BlockLists;
  readonly partial: BlockLists;
  /** For each partial block blockSize rows of blockSize / 32 words; bit j % 32 of word j / 32 is key j of the row. */
  readonly bits: Uint32Array;
}

/** What can be drawn: the forward lists of a block mask and what it counts of itself. */
export interface Drawable extends BlockMaskParts {
  /** Rows and columns of blocks. */
  readonly rows: number;
  readonly columns: number;
  readonly wordsPerBlock: number;
  listOf(batch: number, head: number, row: number): number;
  statistics(): BlockMaskStatistics;
}
