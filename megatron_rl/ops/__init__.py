"""The maths: pure functions of flat tensors, importing torch and nothing of ours."""
