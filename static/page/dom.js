/** The DOM in small verbs. Invariant: what does not differ is not written, so that an unchanged card costs no layout. */

export const REDUCED_MOTION = matchMedia('(prefers-reduced-motion: reduce)');

/** @template {Element} T @param {string} selector @param {ParentNode} [root] @returns {T} */
export function $(selector, root = document) {
  return /** @type {T} */ (root.querySelector(selector));
}

/** @param {Node} node @param {string} value */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** @param {Element} element @param {string} name @param {string | null} value null removes it */
export function attr(element, name, value) {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

/** @param {HTMLElement | SVGElement} element @param {string} name @param {string} value */
export function css(element, name, value) {
  if (element.style.getPropertyValue(name) !== value) element.style.setProperty(name, value);
}

/**
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

/** @param {string} tag @param {Record<string, string | number>} attributes @param {(Node | string)[]} children */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** @param {string} id @returns {DocumentFragment} */
export function template(id) {
  return document.importNode(/** @type {HTMLTemplateElement} */ ($(`#${id}`)).content, true);
}

/** @param {string} url @returns {string | null} only what a browser may safely follow */
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
    // Plain http on another host has no clipboard API.
    const area = h('textarea', { class: 'sr' });
    area.value = value;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}

/** @param {HTMLButtonElement} button */
export async function copyFrom(button) {
  await copy($('pre', /** @type {ParentNode} */ (button.parentNode)).textContent ?? '');
  text(button, 'Copied');
  setTimeout(() => text(button, 'Copy'), 1_500);
}
