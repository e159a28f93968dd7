"""From Typst source to pages, in a process of its own."""
