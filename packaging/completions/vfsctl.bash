# bash completion for vfsctl. bash-completion reads this file at the first Tab; click writes the function, so that it
# fits the click that is installed.
eval "$(_VFSCTL_COMPLETE=bash_source vfsctl)"
