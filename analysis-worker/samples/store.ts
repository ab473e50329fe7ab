import type { Item } from './item';
import old = require('old');
import * as path from "node:path";

/** What is kept. */
export interface Kept<T> extends Item {
  readonly id: string;
  keep(item: T): void;
}

export type Id = string | number;

export enum Color {
  Red,
  Green = 'g',
}

declare module 'outside' {
  export function call(id: Id): void;
}

namespace Deep.Down {
  export const depth = 2;
}

@sealed()
export abstract class Store<T> implements Kept<T> {
  private items: T[] = [];
  constructor(readonly id: string) { super(); }
  abstract keep(item: T): void;
  find = (id: Id): T | undefined => this.items.find(Boolean);
}

export const identity = <T,>(x: T): T => x;
