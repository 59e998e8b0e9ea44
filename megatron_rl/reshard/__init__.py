"""Which box of which tensor every rank holds, the copies between two such layouts, and moving them."""
