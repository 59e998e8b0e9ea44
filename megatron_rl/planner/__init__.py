"""What a run would need and take, before anybody waits in a queue for it: memory, time, and the layouts that fit."""
