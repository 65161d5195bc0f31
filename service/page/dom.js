/** Elements of index.html. */

/**
 * Finds an element.
 * @param {string} id Its id.
 * @returns {HTMLElement} The element.
 */
export function element(id) {
  return document.getElementById(id);
}

/**
 * Sets a text unless it is there already: screen readers and selections notice every replacement.
 * @param {Node} node An element or text node.
 * @param {string} text Its text.
 */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
