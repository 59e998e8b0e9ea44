"""The processes of a run: where they stand, how they are called, how they end. Ray lives here and nowhere else."""
