#compdef vfsctl
# zsh completion for vfsctl. zsh reads this file at the first Tab; click writes the function, so that it fits the click
# that is installed.
eval "$(_VFSCTL_COMPLETE=zsh_source vfsctl)" && _vfsctl_completion "$@"
