import { FlashAttnError } from '../../base/errors.js';
import { attentionBackward, attentionForward } from '../../kernels/attention.js';
import { elementwise } from '../../kernels/elementwise.js';
import { opcodes } from '../../kernels/expression.js';
import type { Operation } from '../../kernels/operation.js';
import {
  checkFields,
  type Fields,
  type NativeDescription,
  parseDescription,
  type Struct,
} from '../../kernels/struct.js';

/**
 * Compares the instructions of programs with what was compiled: a program names them by their numbers.
 *
 * @throws ERR_DEVICE, naming the first that differs
 */
export function checkOpcodes({ opcodes: found }: Pick<NativeDescription, 'opcodes'>, build: string): void {
  for (let code = 0; code < Math.max(found.length, opcodes.length); code++)
    if (found[code] !== opcodes[code])
      throw new FlashAttnError(
        'ERR_DEVICE',
        `${build} is of another version: its opcode ${code} is ${found[code] ?? 'missing'} where this version has ` +
          `${opcodes[code] ?? 'none'}; build it again`,
      );
}

/** Those that run programs. */
const withPrograms: readonly string[] = [elementwise, attentionForward, attentionBackward].map(({ name }) => name);

/** The native code of a backend: nothing is written for it before its structs are known to be those of this version. */
export class NativeBuild {
  readonly #name: string;
  readonly #description: NativeDescription;
  /** Of the operations whose structs have been compared. */
  readonly #numbers = new Map<Operation<never>, number>();

  /**
   * @param name as messages call it, such as 'the addon'
   * @param text what it says of itself
   * @param structs what goes to it beside the structs of operations
   * @throws ERR_DEVICE when it has other structs
   */
  constructor(name: string, text: string, structs: readonly Struct[]) {
    this.#name = name;
    this.#description = parseDescription(text);
    for (const struct of structs) checkFields(this.#description, struct, name);
  }

  /** Whether it has an operation of this name. */
  has({ name }: Pick<Operation<never>, 'name'>): boolean {
    return this.#description.operations.includes(name);
  }

  /** Its number of an operation. @throws ERR_DEVICE when it has no such operation, another struct or other opcodes */
  numberOf<Operands, F extends Fields>(operation: Operation<Operands, F>): number {
    const known = this.#numbers.get(operation as Operation<never>);
    if (known !== undefined) return known;
    const number = this.#description.operations.indexOf(operation.name);
    if (number < 0)
      throw new FlashAttnError(
        'ERR_DEVICE',
        `${this.#name} has no operation ${operation.name}: there is none for this device, or the build is an older one`,
      );
    checkFields(this.#description, operation.struct as Struct, this.#name);
    if (withPrograms.includes(operation.name)) checkOpcodes(this.#description, this.#name);
    this.#numbers.set(operation as Operation<never>, number);
    return number;
  }
}
