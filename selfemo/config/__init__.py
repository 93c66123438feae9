"""Settings: what there is to set, how a file is read, how ranks are laid out, and every check over them."""
