"""Data: prompts read, published sets converted, puzzles generated. The door of tokenizers and of pyarrow's readers."""
