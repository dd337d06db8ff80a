/** DOM helpers. Invariant: an unchanged value is not written again, so that rendering an unchanged card causes no layout. */

const COPIED_MESSAGE_MS = 1_500;

export const REDUCED_MOTION = matchMedia('(prefers-reduced-motion: reduce)');

/** Returns the first match of a selector. @template {Element} T @param {string} selector @param {ParentNode} [root] @returns {T} */
export function $(selector, root = document) {
  return /** @type {T} */ (root.querySelector(selector));
}

/** Sets the text content. @param {Node} node @param {string} value */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** Sets an attribute. @param {Element} element @param {string} name @param {string | null} value null removes the attribute */
export function attr(element, name, value) {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

/** Sets a CSS property. @param {HTMLElement | SVGElement} element @param {string} name @param {string} value */
export function css(element, name, value) {
  if (element.style.getPropertyValue(name) !== value) element.style.setProperty(name, value);
}

/**
 * Creates an HTML element.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Creates an SVG element. @param {string} tag @param {Record<string, string | number>} attributes @param {(Node | string)[]} children */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** Sets the children. Unchanged ones are not moved, since that would take the focus away. @param {Element} parent @param {readonly Element[]} children */
export function setChildren(parent, children) {
  if (children.length !== parent.children.length || children.some((child, index) => parent.children[index] !== child)) parent.replaceChildren(...children);
}

/** Returns a copy of the content of a `<template>`. @param {string} id @returns {DocumentFragment} */
export function template(id) {
  return document.importNode(/** @type {HTMLTemplateElement} */ ($(`#${id}`)).content, true);
}

/** Returns the absolute URL if it is safe to use as a link or media source: `http` or `https` only. @param {string} url @returns {string | null} */
export function safeUrl(url) {
  try {
    const parsed = new URL(url, location.href);
    return parsed.protocol === 'http:' || parsed.protocol === 'https:' ? parsed.href : null;
  } catch {
    return null;
  }
}

/** @param {string} value */
async function copy(value) {
  try {
    await navigator.clipboard.writeText(value);
  } catch {
    // The clipboard API is missing on pages served over plain HTTP.
    const area = h('textarea', { class: 'visually-hidden' });
    area.value = value;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}

/** Copies the code block beside the button and confirms it in the button's label. @param {HTMLButtonElement} button */
export async function copyFrom(button) {
  await copy($('pre', /** @type {ParentNode} */ (button.parentNode)).textContent ?? '');
  text(button, 'Copied');
  setTimeout(() => text(button, 'Copy'), COPIED_MESSAGE_MS);
}
