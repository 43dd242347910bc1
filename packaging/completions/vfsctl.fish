# fish completion for vfsctl. fish reads this file at the first Tab; click writes the function, so that it fits the click
# that is installed.
_VFSCTL_COMPLETE=fish_source vfsctl | source
