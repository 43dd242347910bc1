/**
 * Translated texts. The domain is bound by the shell when it loads the extension or its preferences.
 */

import Gettext from 'gettext';

const domain = Gettext.domain('vfsd');

/**
 * @param {string} text - the text in English
 * @returns {string} the text in the user's language
 */
export function gettext(text) {
    return domain.gettext(text);
}

/**
 * @param {string} singular - the text for one
 * @param {string} plural - the text for several
 * @param {number} count - how many there are
 * @returns {string} the text in the user's language
 */
export function ngettext(singular, plural, count) {
    return domain.ngettext(singular, plural, count);
}

/**
 * @param {string} template - a text with %s or %d
 * @param {...(string|number)} values - what stands for each of them
 * @returns {string}
 */
export function format(template, ...values) {
    return template.replace(/%[sd]/g, () => String(values.shift()));
}
