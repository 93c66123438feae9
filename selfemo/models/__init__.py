"""What a model family is: its sizes, the names of its tensors, and how each is cut over ranks. No torch module is built here."""
