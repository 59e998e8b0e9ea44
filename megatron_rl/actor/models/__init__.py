"""One file per model family, named by its `model_type`: what the family computes, and what it refuses."""
