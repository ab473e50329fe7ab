import React, { useState } from 'react';
import './store.css';
export * from './all';
const { join } = require('node:path');
const lazy = import('./lazy.js');

// How many items are kept.
const LIMIT = 8;
let opened = 0, closed;

/** Opens a store. */
export const open = async (path) => {
  const local = join(path, 'x');
  function inner() { return local; }
  return inner();
};

export default class Store extends Base.Kept {
  #secret = 1;
  static load = () => new Store();
  get size() { return this.items.length; }
  async *walk() { yield 1; }
}

Store.prototype.close = function () { opened -= 1; };
exports.helper = function () {};
const api = { get: (key) => key, put(key) { return key; } };
const View = ({ items }) => <List items={items}><Row /></List>;
