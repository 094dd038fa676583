// Chats as the text that a model goes on from.
import { checkString } from '../base/check.js';
import { FlashAttnError, optionError } from '../base/errors.js';

export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

export interface ChatTemplate {
  /**
   * The chat up to where the assistant answers.
   *
   * @throws ERR_OPTION for what the template refuses, as roles in a wrong order
   */
  render(messages: readonly ChatMessage[]): string;
  /** What ends an answer besides the model's own tokens. */
  readonly stop: readonly string[];
}

const names = { system: 'System', user: 'User', assistant: 'Assistant' } as const;

/** A line for each message with its author before it: for models that know of no chats. */
export const plainChatTemplate: ChatTemplate = {
  render: (messages) => `${messages.map(({ role, content }) => `${names[role]}: ${content}\n`).join('')}Assistant:`,
  stop: ['\nUser:', '\nSystem:'],
};

/** What is used of @huggingface/jinja. */
interface JinjaModule {
  readonly Template: new (source: string) => { render(values: Record<string, unknown>): string };
}

/** Texts that templates name. */
export interface TemplateTexts {
  readonly bos?: string;
  readonly eos?: string;
}

/** @internal `jinjaChatTemplate`, with what loads the package. */
export async function jinjaChatTemplateFrom(
  load: (module: string) => Promise<unknown>,
  source: string,
  { bos = '', eos = '' }: TemplateTexts,
): Promise<ChatTemplate> {
  checkString(source, 'source');
  const { Template } = (await load('@huggingface/jinja').catch((cause: unknown) => {
    throw new FlashAttnError(
      'ERR_OPTION',
      'a chat template needs the package @huggingface/jinja, which cannot be loaded: npm install @huggingface/jinja',
      { cause },
    );
  })) as JinjaModule;
  const compile = () => {
    try {
      return new Template(source);
    } catch (cause) {
      throw new FlashAttnError('ERR_OPTION', `the chat template is wrong: ${(cause as Error).message}`, { cause });
    }
  };
  const template = compile();
  return {
    stop: [],
    render(messages) {
      const own = messages.map(({ role, content }) => ({ role, content }));
      let text: unknown;
      try {
        text = template.render({ messages: own, bos_token: bos, eos_token: eos, add_generation_prompt: true });
      } catch (error) {
        throw optionError(`the chat template refuses these messages: ${(error as Error).message}`);
      }
      return checkString(text, 'what the chat template gives');
    },
  };
}

/**
 * The Jinja template of a model, by the package @huggingface/jinja, which is loaded by this call and has to be installed
 * beside this one.
 *
 * Messages are put into the text as they are: one that has the text of a control token has that token.
 *
 * @throws ERR_OPTION when the package is not installed, or the template is none
 */
export const jinjaChatTemplate = (source: string, texts: TemplateTexts = {}): Promise<ChatTemplate> =>
  jinjaChatTemplateFrom((module) => import(module), source, texts);
