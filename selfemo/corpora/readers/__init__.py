"""One module per corpus format; each names what it reads in FORMATS, and selfemo.corpora.registry finds it there."""
