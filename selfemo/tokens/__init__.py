"""Convert text to token ids and back, the chat format included; initialise the small model of a CPU run.

`selfemo.tokens.encoder.ChatEncoder` is the only way from text to prompt ids. It keeps text from a
corpus or a model from ever becoming a control token.
"""
