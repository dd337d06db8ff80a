/** A button that sends a request. Invariant: one press sends one request, and the reason of a failure is shown beside it. */

import { attr, text } from './dom.js';

/**
 * Sends the request whenever the button is pressed, except while an earlier one is in flight.
 * @param {Element} button
 * @param {Element} message shows why the last request failed
 * @param {() => Promise<void>} send rejects with the hub's error
 * @param {(error: unknown) => string} errorText
 */
export function onPress(button, message, send, errorText) {
  let isSending = false;
  button.addEventListener('click', async () => {
    if (isSending) return;
    isSending = true;
    attr(button, 'aria-disabled', 'true');
    showMessage(message, '');
    try {
      await send();
    } catch (error) {
      showMessage(message, errorText(error));
    }
    isSending = false;
    attr(button, 'aria-disabled', null);
  });
}

/** Shows a message, or hides its element if it is empty. @param {Element} element @param {string} message */
export function showMessage(element, message) {
  text(element, message);
  attr(element, 'hidden', message ? null : '');
}
