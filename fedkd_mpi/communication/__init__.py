"""The processes of a run and what passes between them: the only rooms that know MPI."""
