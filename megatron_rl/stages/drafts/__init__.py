"""SPEC-RL: last epoch's response is this epoch's draft. `reuse` stands before `generate`, `remember` after it.

`correct`, in `learn`, weighs reused tokens. Memory, shared: `{"cache": Batch of drafts, "law": what they were drawn
from, "side": who scored them, "laws": how much of each old law is kept, "waves": count}`.
"""
