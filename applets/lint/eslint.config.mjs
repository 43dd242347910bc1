// The style of GNOME Shell's own JavaScript.

import js from '@eslint/js';
import jsdoc from 'eslint-plugin-jsdoc';

export default [
    {ignores: ['kde/**']}, // QML's dialect; qmllint checks it
    js.configs.recommended,
    jsdoc.configs['flat/recommended-error'],
    {
        linterOptions: {reportUnusedDisableDirectives: 'error'},
        languageOptions: {
            ecmaVersion: 2022,
            sourceType: 'module',
            globals: {console: 'readonly', global: 'readonly'},
        },
        settings: {jsdoc: {mode: 'typescript'}},
        rules: {
            'array-bracket-spacing': 'error',
            'arrow-parens': ['error', 'as-needed'],
            'arrow-spacing': 'error',
            'brace-style': 'error',
            'camelcase': ['error', {properties: 'never', allow: ['^vfunc_', '^signal_']}],
            'comma-dangle': ['error', 'always-multiline'],
            'comma-spacing': 'error',
            'complexity': ['error', 16],
            'curly': ['error', 'multi-or-nest', 'consistent'],
            'dot-location': ['error', 'property'],
            'eol-last': 'error',
            'eqeqeq': 'error',
            'indent': ['error', 4, {SwitchCase: 0, ignoredNodes: ['CallExpression > ClassExpression']}],
            'keyword-spacing': 'error',
            'max-len': ['error', 120],
            'max-lines': ['error', 400],
            'no-implicit-coercion': 'error',
            'no-multiple-empty-lines': ['error', {max: 1}],
            'no-restricted-globals': ['error', 'imports', 'log', 'logError', 'print', 'printerr', 'window'],
            'no-shadow': 'error',
            'no-trailing-spaces': 'error',
            'no-unused-vars': ['error', {argsIgnorePattern: '^_', varsIgnorePattern: '^_$'}],
            'no-var': 'error',
            'object-curly-spacing': 'error',
            'object-shorthand': 'error',
            'operator-linebreak': ['error', 'after', {overrides: {'?': 'before', ':': 'before'}}],
            'prefer-arrow-callback': 'error',
            'prefer-const': 'error',
            'prefer-template': 'error',
            'quotes': ['error', 'single', {avoidEscape: true, allowTemplateLiterals: true}],
            'semi': 'error',
            'space-before-blocks': 'error',
            'space-before-function-paren': ['error', {named: 'never', anonymous: 'never', asyncArrow: 'always'}],
            'space-infix-ops': 'error',
            'jsdoc/require-jsdoc': ['error', {publicOnly: true, require: {ClassDeclaration: true}}],
            'jsdoc/require-param': ['error', {exemptedBy: ['type']}],
            'jsdoc/require-param-description': 'error',
            'jsdoc/require-returns-description': 'off',
            'jsdoc/no-undefined-types': 'off',
            'jsdoc/tag-lines': ['error', 'any', {startLines: 1}],
        },
    },
    {
        // the process of the shell must not load GTK
        files: ['**/gnome/*.js'],
        ignores: ['**/gnome/prefs.js'],
        rules: {'no-restricted-imports': ['error', {patterns: [{regex: '^gi://(Gtk|Gdk|Adw)'}]}]},
    },
    {
        // what is plain logic runs without the shell
        files: ['**/gnome/{actions,client,names,portal,service,states,texts}.js'],
        rules: {'no-restricted-imports': ['error', {patterns: [{regex: '^resource:|^gi://(?!Gio|GLib)'}]}]},
    },
];
