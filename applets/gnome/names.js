/**
 * Names for shares: what vfsd takes, made of what the user has; plain logic.
 */

/** vfsd takes up to 128 characters, and no more than fit into the path of a socket. */
const LONGEST = 60;

/**
 * A valid name for a share of a folder.
 *
 * @param {string} folder - the folder's absolute path
 * @returns {string}
 */
export function shareName(folder) {
    const last = folder.split('/').filter(part => part).at(-1) ?? '';
    const name = last
        .normalize('NFKD')
        .replace(/\p{Mark}/gu, '')
        .replace(/[^A-Za-z0-9._-]+/g, '-')
        .replace(/^[.-]+|-+$/g, '');
    return name.slice(0, LONGEST) || 'share';
}

/**
 * The name with a number, for when it is taken.
 *
 * @param {string} name - a valid name
 * @param {number} number - which one, from 1; the first has no number
 * @returns {string}
 */
export function numbered(name, number) {
    const suffix = number > 1 ? `-${number}` : '';
    return name.slice(0, LONGEST - suffix.length) + suffix;
}
