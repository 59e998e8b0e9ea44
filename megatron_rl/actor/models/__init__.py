"""One file per model family, named by the `model_type` of its config.json: what that family computes, and what it refuses."""
