"""SPEC-RL: last epoch's response is this epoch's draft. `reuse` stands before `generate`, `remember` after it.

Memory, shared: `{"cache": Batch of drafts, "law": what they were drawn from, "side": who scored them, "waves": count}`.
"""
