"""A guest's console for any number of readers: what `OpenConsole` gives out."""

from vfsd.console.console import Console

__all__ = ["Console"]
