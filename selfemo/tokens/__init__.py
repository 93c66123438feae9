"""Text to token ids and back, the chat format included, and the small model that a CPU run starts from.

`selfemo.tokens.encoder.ChatEncoder` is the only way from text to prompt ids: it keeps text from a corpus or a model from ever
becoming a control token.
"""
