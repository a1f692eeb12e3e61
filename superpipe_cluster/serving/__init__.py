"""Serving a language model online: many requests answered in each pass over weights that stream.

Owns passes for many sequences (`packed`), who is in them (`engine`), the text of tokens (`spelling`, `choosing`), and
OpenAI's form of asking and answering (`wire`, `faults`, `app`, `connection`). The worker program (`workers/serve.py`)
puts these together; the head's door (`api.openai`) knows only what an error looks like and how a worker is reached.
Importing this package loads nothing.
"""
